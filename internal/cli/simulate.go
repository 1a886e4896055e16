package cli

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"strings"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

const simulateHelp = "Be a Prostie Zvonki server, in the manner of the vendor's TestServer. " +
	"Lines on standard input make events:" + `

  generate incoming <from> [line]
  generate transfer|transans <from> <to> [line] [client guid] [call id]
  generate outcoming|outans <from> <to> [client guid] [call id]
  generate history <from> <to> <start> <end> <duration> in|out [record] [line] [call id]
  sms <from> <to> <client guid> <call id> <base64 text>
  simulation on|off

A client guid of * means all clients. Quotes keep words together.`

func (p Program) simulate(ctx context.Context, args []string) error {
	fs := p.flags("simulate [flags]", simulateHelp)
	port := fs.Uint("p", 10150, "`port` to listen on")
	secure := fs.Bool("s", false, "serve wss (TLS) with a new certificate; its fingerprint is printed")
	legacy := fs.Bool("legacy", false, "with -s: only TLS 1.0 with RSA key exchange and an expired certificate, "+
		"as old connectors do")
	plain := fs.Bool("r", false, "serve ws, without TLS (the default)")
	password := fs.String("c", "", "`password` that clients must have; without one anybody may connect")
	debug := fs.Bool("d", false, "print every frame")
	simulation := fs.Bool("simulation", false, "start with the simulation on: a call every 10 s")
	if err := parse(fs, args); err != nil {
		return err
	}
	if *secure && *plain || *legacy && !*secure || *port > 65535 {
		return usageError("-s and -r exclude each other, -legacy goes with -s, and a port is at most 65535")
	}
	printLine := func(line string) { fmt.Fprintln(p.Out, line) }
	opts := pztest.Options{Password: *password, Log: printLine}
	if *debug {
		opts.Debug = printLine
	}
	if *secure {
		opts.TLS = map[bool]func() *tls.Config{false: pztest.ModernTLS, true: pztest.LegacyTLS}[*legacy]()
	}
	l, err := net.Listen("tcp", ":"+strconv.FormatUint(uint64(*port), 10))
	if err != nil {
		return err
	}
	server := pztest.New(opts)
	server.Start(l)
	defer server.Close()
	fmt.Fprintf(p.Out, "A simulated Prostie Zvonki server listens on port %d.\n", *port)
	if *secure {
		fmt.Fprintln(p.Out, "PZ_TLS_FINGERPRINT="+server.Fingerprint())
	}
	if *simulation {
		server.Simulate(true)
	}
	// A blocked read of standard input cannot be interrupted; the goroutine ends with the process.
	go p.executeLines(server)
	<-ctx.Done()
	return nil
}

// executeLines executes the lines of standard input until it ends.
func (p Program) executeLines(server *pztest.Server) {
	lines := bufio.NewScanner(p.In)
	lines.Buffer(nil, pz.MaxMessage) // an SMS may be long
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		if err := execute(server, line); err != nil {
			fmt.Fprintln(p.Err, err)
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(p.Err, "standard input is not read any more:", err)
	}
}

// execute makes the event that a line describes, or switches the simulation.
func execute(server *pztest.Server, line string) error {
	words, err := pz.SplitWords(line)
	if err != nil {
		return err
	}
	switch strings.ToLower(words[0]) {
	case "generate", "sms":
		fields, err := pz.ParseGenerate(words)
		if err != nil {
			return err
		}
		return server.Generate(fields)
	case "simulation":
		if len(words) == 2 && (words[1] == "on" || words[1] == "off") {
			server.Simulate(words[1] == "on")
			return nil
		}
	}
	return fmt.Errorf("%q is not understood; \"pzbridge help simulate\" lists what is", line)
}

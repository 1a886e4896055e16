package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/term"

	"pzbridge/internal/advice"
	"pzbridge/internal/config"
	"pzbridge/internal/pz"
)

// console is a prompt for requests to a Prostie Zvonki server, like the vendor's Diagnostic.
func (p Program) console(ctx context.Context, args []string) error {
	fs := p.flags("console [url]", "Talk to a Prostie Zvonki server as the vendor's Diagnostic does; "+
		"\"help\" at its prompt lists the commands. With a url it\nconnects there first, as a client of its own, "+
		"with the password of PZ_PASSWORD (or its file, or .env). Commands may come from a pipe; the exit code\n"+
		"is 1 if one of them failed.")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 1); err != nil {
		return err
	}
	c := &console{ctx: ctx, in: newLines(ctx, p), out: p.Out}
	defer c.in.close()
	if c.in.terminal != nil {
		c.out = c.in.terminal // keeps the line that the user is typing intact
	}
	defer c.hangUp()
	if fs.NArg() == 1 {
		vars, err := config.Environment()
		if err != nil {
			return err
		}
		password, err := config.Secret(vars, "PZ_PASSWORD")
		if err != nil {
			return err
		}
		c.printError(c.open(fs.Arg(0), uuid.NewString(), password))
	}
	for ctx.Err() == nil {
		line, err := c.in.read(c.prompt())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if c.runLine(line) {
			break
		}
	}
	if c.failed {
		return errCommandFailed
	}
	return nil
}

// errCommandFailed means that a command at the prompt has failed. Its error is printed already.
var errCommandFailed = errors.New("a command failed")

// console is the state of the prompt.
type console struct {
	ctx    context.Context
	in     *lines
	out    io.Writer
	link   *link // nil while not connected
	events bool  // events are printed
	failed bool  // a command has failed
}

func (c *console) prompt() string {
	if c.events {
		return "[events on]> "
	}
	return "[events off]> "
}

// consoleCommand is one command of the prompt. Its name is matched in any case.
type consoleCommand struct {
	name, usage, text string
	run               func(c *console, words []string) error
}

func consoleCommands() []consoleCommand {
	return []consoleCommand{
		{"connect", "connect <url> <client guid>", "connect to a server; asks for the password", (*console).connect},
		{"version", "version", "print the server's version", (*console).version},
		{"clients", "clients", "list the clients that the server knows", (*console).clients},
		{"events", "events", "show events as they come, or no more", (*console).toggleEvents},
		{"call", "call <from> <to>", "ring from, then dial to", (*console).call},
		{
			"transfer", "transfer <call id> [to]",
			"answer where a call should go; without a number, decline",
			(*console).transfer,
		},
		{"sms", "sms <from> <to> <client guid> <call id> <base64 text>", "make an SMS", (*console).generate},
		{
			"generate", "generate incoming|transfer|transans|outcoming|outans|history …",
			"make an event at a test server:\n" +
				"  generate incoming <from> [line]\n" +
				"  generate transfer|transans <from> <to> [line] [client guid] [call id]\n" +
				"  generate outcoming|outans <from> <to> [client guid] [call id]\n" +
				"  generate history <from> <to> <start> <end> <duration> in|out [record] [line] [call id]",
			(*console).generate,
		},
		{"simulation", "simulation on|off", "let a test server make calls by itself", (*console).simulation},
		{"help", "help [command]", "list the commands, or describe one", (*console).help},
		{"exit", "exit", "leave", nil},
	}
}

// runLine executes one line, and reports whether it ends the console.
func (c *console) runLine(line string) bool {
	if strings.TrimSpace(line) == "" {
		return false
	}
	words, err := pz.SplitWords(line)
	if c.printError(err) {
		return false
	}
	words[0] = strings.ToLower(words[0])
	if words[0] == "exit" || words[0] == "quit" {
		return true
	}
	list := consoleCommands()
	i := slices.IndexFunc(list, func(cmd consoleCommand) bool { return cmd.name == words[0] })
	if i < 0 {
		c.printError(fmt.Errorf("there is no command %q; \"help\" lists them", words[0]))
		return false
	}
	c.printError(list[i].run(c, words))
	return false
}

// printError prints an error, if there is one, and reports whether there is.
func (c *console) printError(err error) bool {
	if err != nil {
		c.failed = true
		fmt.Fprintln(c.out, "Error:", printable(advice.English(err)))
	}
	return err != nil
}

func (c *console) connect(words []string) error {
	if len(words) != 3 {
		return errors.New("connect <url> <client guid>")
	}
	password, err := c.in.password("Password: ")
	if err != nil {
		return errors.New("no password was given; an empty line stands for none")
	}
	return c.open(words[1], words[2], password)
}

// open connects to a server, in place of the current connection.
func (c *console) open(url, guid, password string) error {
	c.hangUp()
	id := pz.Identity{
		Password:   password,
		ClientType: "Diagnostic",
		GUID:       guid,
		EventsMask: 65535,
		Protocol:   2,
	}
	onEvent := func(e pz.Event) {
		if c.in.withLock(func() bool { return c.events }) {
			c.in.print(printable(strings.TrimSpace(string(e.XML()))))
		}
	}
	onEnd := func(err error) { c.in.print("Disconnected: " + advice.English(err)) }
	l, err := dialLink(c.ctx, url, id, onEvent, onEnd)
	if err != nil {
		return err
	}
	c.link = l
	fmt.Fprintln(c.out, "Connected")
	return nil
}

func (c *console) hangUp() {
	if c.link != nil {
		c.link.close()
		c.link = nil
	}
}

// request sends a request, and fails if the server refuses it.
func (c *console) request(method string, data pz.Attrs) (pz.Response, error) {
	if c.link == nil {
		return pz.Response{}, errors.New("not connected: connect <url> <client guid>")
	}
	resp, err := c.link.request(c.ctx, method, data)
	if err == nil && resp.Code != pz.CodeDone {
		err = fmt.Errorf("the server refused with code %s %s", resp.Code, resp.Details)
	}
	return resp, err
}

// command sends a request whose response has no content, and prints OK.
func (c *console) command(method string, data pz.Attrs) error {
	_, err := c.request(method, data)
	if err == nil {
		fmt.Fprintln(c.out, "OK")
	}
	return err
}

func (c *console) version([]string) error {
	resp, err := c.request(pz.MethodGetVersion, nil)
	if err == nil {
		fmt.Fprintln(c.out, printable(resp.Version))
	}
	return err
}

func (c *console) clients([]string) error {
	resp, err := c.request(pz.MethodGetClients, nil)
	if err != nil {
		return err
	}
	for _, client := range resp.Clients {
		state := map[bool]string{true: "Connected", false: "Disconnected"}[client.Connected == "1"]
		fields := []string{client.ID, client.Type, client.IP, client.GUID, state}
		fmt.Fprintln(c.out, printable(strings.Join(fields, " ")))
	}
	return nil
}

func (c *console) toggleEvents([]string) error {
	c.in.withLock(func() bool { c.events = !c.events; return true })
	return nil
}

func (c *console) call(words []string) error {
	if len(words) != 3 {
		return errors.New("call <from> <to>")
	}
	return c.command(pz.MethodCall, pz.Attrs{{Name: "From", Value: words[1]}, {Name: "To", Value: words[2]}})
}

func (c *console) transfer(words []string) error {
	if len(words) != 2 && len(words) != 3 {
		return errors.New("transfer <call id> [to]")
	}
	to := strings.Join(words[2:], "")
	return c.command(pz.MethodTransfer, pz.Attrs{{Name: "CallID", Value: words[1]}, {Name: "To", Value: to}})
}

func (c *console) generate(words []string) error {
	fields, err := pz.ParseGenerate(words)
	if err != nil {
		return err
	}
	return c.command(pz.MethodGenerate, fields)
}

func (c *console) simulation(words []string) error {
	if len(words) != 2 || words[1] != "on" && words[1] != "off" {
		return errors.New("simulation on|off")
	}
	return c.command(pz.MethodSimulation, pz.Attrs{{Name: "Mode", Value: words[1]}})
}

func (c *console) help(words []string) error {
	for _, cmd := range consoleCommands() {
		switch {
		case len(words) == 1:
			fmt.Fprintf(c.out, "  %-55s %s\n", cmd.usage, strings.SplitN(cmd.text, ":\n", 2)[0])
		case cmd.name == strings.ToLower(words[1]):
			fmt.Fprintf(c.out, "%s\n%s\n", cmd.usage, cmd.text)
			return nil
		}
	}
	if len(words) > 1 {
		return fmt.Errorf("there is no command %q; \"help\" lists them", words[1])
	}
	return nil
}

// complete completes the first word of a line at the tab key.
func complete(line string, pos int, key rune) (string, int, bool) {
	if key != '\t' || pos != len(line) || strings.Contains(line, " ") {
		return "", 0, false
	}
	var found []string
	for _, cmd := range consoleCommands() {
		if strings.HasPrefix(cmd.name, strings.ToLower(line)) {
			found = append(found, cmd.name)
		}
	}
	if len(found) != 1 {
		return "", 0, false
	}
	return found[0] + " ", len(found[0]) + 1, true
}

// newLines reads from p.In: from a terminal with line editing, history and completion, and from a
// pipe line by line.
func newLines(ctx context.Context, p Program) *lines {
	l := &lines{ctx: ctx, out: p.Out}
	in, ok := p.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		l.pipe = bufio.NewScanner(p.In)
		return l
	}
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		l.pipe = bufio.NewScanner(p.In)
		return l
	}
	l.restore = func() { _ = term.Restore(int(in.Fd()), before) }
	l.terminal = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{p.In, p.Out}, "")
	l.terminal.AutoCompleteCallback = complete
	return l
}

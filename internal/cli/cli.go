// Package cli holds the commands of the program, a file each. Without a command the program is the bridge.
package cli

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"pzbridge/internal/asynclog"
	"pzbridge/internal/config"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // a wrong command line or configuration: trying again will not help
)

// Program is what the commands need.
type Program struct {
	Version  string
	Bridge   func(context.Context, config.Config, *slog.Logger) error // runs the bridge until the context ends
	In       io.Reader
	Out, Err io.Writer
}

// command is one of the program's commands. Run gets the arguments after its name.
type command struct {
	name, summary string
	run           func(p Program, ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"demo", "show the whole thing at work, without any set-up", Program.demo},
		{"simulate", "be a Prostie Zvonki server to try things out against", Program.simulate},
		{"check", "check the configuration and print it with secrets hidden", Program.check},
		{"doctor", "check whether the server and each CRM can be reached, and say what to do", Program.doctor},
		{"console", "talk to a Prostie Zvonki server as the vendor's Diagnostic does", Program.console},
		{"tail", "print events and deliveries as they happen", Program.tail},
		{"deliveries", "list what became of events at the CRMs", Program.deliveries},
		{"redeliver", "send deliveries again", Program.redeliver},
		{"compact", "make the outbox's file small again, while the bridge is stopped", Program.compact},
		{"restore", "put a backup in the place of the outbox's file, while the bridge is stopped", Program.restore},
		{"secret", "print a fresh secret for an endpoint", Program.secret},
		{"send-test", "send an endpoint a test and print what it answers", Program.sendTest},
		{"healthcheck", "ask the running bridge whether it is alive; for Docker", Program.healthcheck},
		{"version", "print the version", Program.version},
		{"help", "print this, or with a command's name how that is used", Program.help},
	}
}

// errReported means that the user has been told what is wrong.
var errReported = errors.New("reported")

// usageError is a wrong command line.
type usageError string

func (e usageError) Error() string { return string(e) }

// Main runs what the arguments name and gives the exit code.
func (p Program) Main(ctx context.Context, args []string) int {
	out := &output{Writer: p.Out}
	p.Out = out
	err := p.dispatch(ctx, args)
	if errors.Is(err, flag.ErrHelp) {
		err = nil
	}
	var usage usageError
	var wrong *config.Error
	switch err = cmp.Or(err, out.lost()); {
	case err == nil:
		return exitDone
	case errors.Is(err, errReported):
		return exitUsage
	}
	last := asynclog.New(p.Err, nil) // nor does the end wait for whoever reads it
	fmt.Fprintln(last, "pzbridge:", err)
	last.Close()
	if errors.As(err, &usage) || errors.As(err, &wrong) {
		return exitUsage
	}
	return exitFailed
}

// output remembers what could not be written: what a command prints is what it is for.
type output struct {
	io.Writer
	mu  sync.Mutex
	err error
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.Writer.Write(b)
	o.err = cmp.Or(o.err, err)
	return n, err
}

// lost is the first error of the writing. Whoever has read enough is none.
func (o *output) lost() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if errors.Is(o.err, syscall.EPIPE) {
		return nil
	}
	return o.err
}

func (p Program) dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return p.runBridge(ctx)
	}
	name := args[0]
	switch name {
	case "-h", "-help", "--help":
		name = "help"
	case "-version", "--version":
		name = "version"
	}
	for _, c := range commands() {
		if c.name == name {
			return c.run(p, ctx, args[1:])
		}
	}
	return usageError(fmt.Sprintf("there is no command %q; \"pzbridge help\" lists them", name))
}

func (p Program) runBridge(ctx context.Context) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // whoever reads the log may go away; that is no reason to stop
	lines := asynclog.New(p.Err, func(out io.Writer, leftOut int) {
		cfg.Logger(out).Warn("lines of the log are missing here: for a while nobody has read it", "lines", leftOut)
	})
	defer lines.Close()
	return p.Bridge(ctx, cfg, cfg.Logger(lines))
}

func load() (config.Config, error) {
	vars, err := config.Environment()
	if err != nil {
		return config.Config{}, err
	}
	return config.Load(vars)
}

// flags makes a command's flag set; its help is the usage line, the text and the flags.
func (p Program) flags(usage, text string) *flag.FlagSet {
	fs := flag.NewFlagSet(usage, flag.ContinueOnError)
	fs.SetOutput(p.Err)
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "Usage: pzbridge %s\n\n%s\n", usage, text)
		hasFlags := false
		fs.VisitAll(func(*flag.Flag) { hasFlags = true })
		if hasFlags {
			fmt.Fprintln(fs.Output(), "\nFlags:")
			fs.PrintDefaults()
		}
	}
	return fs
}

// parseFlags reads a command's flags.
func parseFlags(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		return errReported
	}
	return err
}

// parse reads the flags of a command that takes no other arguments.
func parse(fs *flag.FlagSet, args []string) error {
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	return atMost(fs, 0)
}

// atMost fails if there are more arguments, beside flags, than a command takes.
func atMost(fs *flag.FlagSet, arguments int) error {
	switch extra := fs.Arg(arguments); {
	case fs.NArg() <= arguments:
		return nil
	case strings.HasPrefix(extra, "-"):
		return usageError(fmt.Sprintf("%s comes too late: flags stand before everything else", extra))
	default:
		return usageError(fmt.Sprintf("%q is one argument too many", extra))
	}
}

// Package cli implements the commands of the program, one file for each. Without a command, the
// program runs the bridge.
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

	"pzbridge/internal/advice"
	"pzbridge/internal/asynclog"
	"pzbridge/internal/config"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // a wrong command line or configuration: running it again does not help
)

// Program holds the dependencies of the commands.
type Program struct {
	Version string
	// Bridge runs the bridge until the context ends.
	Bridge   func(context.Context, config.Config, *slog.Logger) error
	In       io.Reader
	Out, Err io.Writer
}

// command is one command of the program. run receives the arguments after the command's name.
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
		{"status", "say how the running bridge stands, and what to do", Program.status},
		{"console", "talk to a Prostie Zvonki server as the vendor's Diagnostic does", Program.console},
		{"tail", "print events and deliveries as they happen", Program.tail},
		{"calls", "find calls, and show whether each CRM has got them", Program.calls},
		{"deliveries", "list what became of events at the CRMs", Program.deliveries},
		{"redeliver", "send deliveries again", Program.redeliver},
		{"audit", "show what the operator has done", Program.audit},
		{"forget", "remove all that is stored of a person", Program.forget},
		{"compact", "make the outbox's file small again, while the bridge is stopped", Program.compact},
		{"restore", "put a backup in the place of the outbox's file, while the bridge is stopped", Program.restore},
		{"copy", "bring an outbox's file into a database, for several bridges", Program.copy},
		{"service", "install, start, stop or uninstall the bridge as a service of this machine", Program.service},
		{"secret", "print a fresh secret for an endpoint", Program.secret},
		{"send-test", "send an endpoint a test and print what it answers", Program.sendTest},
		{"healthcheck", "ask the running bridge whether it is alive; for Docker", Program.healthcheck},
		{"version", "print the version", Program.version},
		{"help", "print this, or with a command's name how that is used", Program.help},
	}
}

// errReported means that the message is printed already.
var errReported = errors.New("reported")

// usageError is the message for a wrong command line.
type usageError string

func (e usageError) Error() string { return string(e) }

// Main runs the command that args name, prints its error to p.Err and returns the exit code: 0 for
// success, 1 for a failure, 2 for a wrong command line or configuration.
func (p Program) Main(ctx context.Context, args []string) int {
	out := &output{Writer: p.Out}
	p.Out = out
	err := p.dispatch(ctx, args)
	if errors.Is(err, flag.ErrHelp) {
		err = nil
	}
	var usage usageError
	var wrong *config.Error
	switch err = cmp.Or(err, out.writeError()); {
	case err == nil:
		return exitDone
	case errors.Is(err, errReported):
		return exitUsage
	}
	stderr := asynclog.New(p.Err, nil) // a blocked reader must not keep the program from exiting
	fmt.Fprintln(stderr, "pzbridge:", advice.English(err))
	stderr.Close()
	if errors.As(err, &usage) || errors.As(err, &wrong) {
		return exitUsage
	}
	return exitFailed
}

// output keeps the first write error. A command whose output is lost must not exit with success.
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

// writeError returns the first write error. A closed pipe is no error: its reader needs no more.
func (o *output) writeError() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if errors.Is(o.err, syscall.EPIPE) {
		return nil
	}
	return o.err
}

func (p Program) dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		vars, err := config.Environment()
		if err != nil {
			return err
		}
		return p.runBridge(ctx, vars)
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

func (p Program) runBridge(ctx context.Context, vars map[string]string) error {
	cfg, err := config.Load(vars)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // the bridge runs on if the reader of its log goes away
	output := config.LogOutput{Terminal: isTerminal(p.Err), Colour: showsColours(p.Err)}
	lines := asynclog.New(p.Err, func(out io.Writer, leftOut int) {
		cfg.Logger(out, output).Warn("lines of the log are missing here: for a while nobody has read it",
			"lines", leftOut)
	})
	defer lines.Close()
	return p.Bridge(ctx, cfg, cfg.Logger(lines, output))
}

func load() (config.Config, error) {
	vars, err := config.Environment()
	if err != nil {
		return config.Config{}, err
	}
	return config.Load(vars)
}

// flags makes a command's flag set. Its help consists of the usage line, the text and the flags.
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

// parseFlags parses a command's flags. The flag package prints the error itself.
func parseFlags(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		return errReported
	}
	return err
}

// parse parses the flags of a command without other arguments.
func parse(fs *flag.FlagSet, args []string) error {
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	return checkMaxArgs(fs, 0)
}

// checkMaxArgs fails if the command line has more arguments after the flags than the command takes.
func checkMaxArgs(fs *flag.FlagSet, maxArgs int) error {
	switch extra := fs.Arg(maxArgs); {
	case fs.NArg() <= maxArgs:
		return nil
	case strings.HasPrefix(extra, "-"):
		return usageError(fmt.Sprintf("%s comes too late: flags stand before everything else", extra))
	default:
		return usageError(fmt.Sprintf("%q is one argument too many", extra))
	}
}

package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/term"

	"pzbridge/internal/advice"
	"pzbridge/internal/config"
	"pzbridge/internal/pz"
)

// consoleIntro begins the help of the command; the commands at its prompt follow.
const consoleIntro = `Talk to a Prostie Zvonki server as the vendor's Diagnostic does. With an address it connects there
first, with the password of PZ_PASSWORD (or its file, or .env). Commands may come from a pipe; the
exit code is 1 if one of them failed.

What the server replays at the connect, because this client has missed it, is always printed, up to
50 events while events are off. Without -guid each start is a new client, and gets all that the
server still holds. With the guid of the bridge it would throw the bridge out, and get in its place
the calls that the bridge has missed.

Commands at the prompt:

`

// console is a prompt for requests to a Prostie Zvonki server, like the vendor's Diagnostic.
func (p Program) console(ctx context.Context, args []string) error {
	c := &console{ctx: ctx, identity: pz.Identity{
		ClientType: "Diagnostic",
		EventsMask: 65535,
		Protocol:   2,
	}}
	fs := p.flags("console [flags] [address]", consoleIntro+listConsoleCommands()+
		"\nQuotes keep words together. \"help connect\" says what an address and the settings may be.")
	fs.BoolVar(&c.secure, "ssl", false, "connect by TLS, as with wss:// in the address; any certificate is accepted")
	guid := fs.String("guid", "", "connect as the client of this `GUID`, by which the server knows what was missed")
	for _, o := range identityOptions {
		fs.Func(o.name, o.usage, func(value string) error { return o.set(&c.identity, value) })
	}
	fs.BoolVar(&c.raw, "raw", false, "print events as they come, in XML, and not in words")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 1); err != nil {
		return err
	}
	if err := pz.CheckIdentityText(*guid); err != nil {
		return usageError(fmt.Sprintf("-guid %v", err))
	}
	c.in, c.out = newLines(ctx, p), p.Out
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
		id := c.identity
		if id.Password, err = config.Secret(vars, "PZ_PASSWORD"); err != nil {
			return err
		}
		id.GUID = cmp.Or(*guid, uuid.NewString())
		c.printError(c.open(fs.Arg(0), id, c.secure))
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
	failed bool  // a command has failed

	identity pz.Identity // of a connection whose command does not say otherwise
	secure   bool        // connections use TLS, whatever their addresses say

	// The reader of the socket uses these too, under the lock of in.
	events   bool // events are printed
	raw      bool // as they come
	replayed int  // events since the connection was made
}

// identityOption is a setting of a connection: a flag of the command, and name=value at the prompt.
type identityOption struct {
	name, usage string
	set         func(id *pz.Identity, value string) error
}

var identityOptions = []identityOption{
	{
		"type",
		"the client `type`, which the vendor's licence is bound to; Diagnostic by default",
		func(id *pz.Identity, value string) error { return setIdentityText(&id.ClientType, value) },
	},
	{
		"mask",
		"the events to get, whatever their numbers: the sum of their `types` (1 asks where to go, 2 rings,\n" +
			"4 over, 8 rings the client, 16 the client picked up, 32 picked up, 128 SMS, 256 SMS status);\n" +
			"all by default",
		setMask,
	},
	{
		"phone",
		"get the events of this `extension`, besides those of the mask",
		func(id *pz.Identity, value string) error { return setIdentityText(&id.PhoneNumber, value) },
	},
	{
		"group",
		"the broadcast `group`",
		func(id *pz.Identity, value string) error { return setIdentityText(&id.BroadcastGroup, value) },
	},
}

func setIdentityText(field *string, value string) error {
	*field = value
	return pz.CheckIdentityText(value)
}

func setMask(id *pz.Identity, value string) error {
	mask, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return errors.New("must be a number that fits 32 bits, such as 65535 for all events")
	}
	id.EventsMask = uint32(mask)
	return nil
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
		{
			"connect", "connect <address> <client guid> [ssl] [settings]",
			"connect to a server; asks for the password:\n" +
				"  The address is host, host:port, ws://host:port or wss://host:port; the port is 10150 by default.\n" +
				"  ssl connects by TLS, as wss:// does. By the guid the server knows what this client has missed.\n" +
				"  The settings are name=value; without one, that of the command line counts:\n" + listSettings(),
			(*console).connect,
		},
		{"version", "version", "print the server's version", (*console).version},
		{
			"clients", "clients", "list the clients that the server knows:\n" +
				"  number, type, address, guid, whether it is connected, and its extension if it has one",
			(*console).clients,
		},
		{
			"events", "events [words|raw]", "print events, or no more; in words, or as they come:\n" +
				"  In words: what happened, (replayed) if the server sends it again, from → to, line, call.\n" +
				"  raw is the XML. Without an argument, the form stays as it is.",
			(*console).toggleEvents,
		},
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

// summary is the line about a command in the list of all.
func (cmd consoleCommand) summary() string {
	text, _, _ := strings.Cut(cmd.text, ":\n")
	return fmt.Sprintf("  %-55s %s\n", cmd.usage, text)
}

func listConsoleCommands() string {
	var b strings.Builder
	for _, cmd := range consoleCommands() {
		b.WriteString(cmd.summary())
	}
	return b.String()
}

// listSettings lists the settings of a connection for the help of connect.
func listSettings() string {
	lines := make([]string, len(identityOptions))
	for i, o := range identityOptions {
		usage := strings.NewReplacer("`", "", "\n", "\n            ").Replace(o.usage)
		lines[i] = fmt.Sprintf("    %-7s %s", o.name+"=", usage)
	}
	return strings.Join(lines, "\n")
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
	if len(words) < 3 {
		return errors.New("connect <address> <client guid> [ssl] [settings]")
	}
	id, secure := c.identity, c.secure
	id.GUID = words[2]
	if err := pz.CheckIdentityText(id.GUID); err != nil {
		return fmt.Errorf("the client guid %w", err)
	}
	for _, word := range words[3:] {
		if strings.EqualFold(word, "ssl") {
			secure = true
			continue
		}
		if err := setOption(&id, word); err != nil {
			return err
		}
	}
	var err error
	if id.Password, err = c.in.password("Password: "); err != nil {
		return errors.New("no password was given; an empty line stands for none")
	}
	return c.open(words[1], id, secure)
}

// setOption changes an identity by a name=value of the prompt.
func setOption(id *pz.Identity, word string) error {
	name, value, _ := strings.Cut(word, "=")
	for _, o := range identityOptions {
		if !strings.EqualFold(o.name, name) {
			continue
		}
		if err := o.set(id, value); err != nil {
			return fmt.Errorf("%s %w", o.name, err)
		}
		return nil
	}
	return fmt.Errorf("%q is no setting of a connection; \"help connect\" lists them", word)
}

// open connects to a server, in place of the current connection.
func (c *console) open(address string, id pz.Identity, secure bool) error {
	c.hangUp()
	host, isPlain := strings.CutPrefix(address, "ws://")
	if secure && (isPlain || !strings.Contains(address, "://")) {
		address = "wss://" + host
	}
	c.in.withLock(func() bool { c.replayed = 0; return true })
	onEnd := func(err error) { c.in.print("Disconnected: " + advice.English(err)) }
	l, err := dialLink(c.ctx, address, id, c.showEvent, onEnd)
	if err != nil {
		return err
	}
	c.link = l
	fmt.Fprintln(c.out, "Connected")
	return nil
}

// maxReplayShown is the maximum number of replayed events that are printed while events are not to
// be printed. To a client that it does not know, a server replays all that it holds.
const maxReplayShown = 50

// showEvent prints an event if events are to be printed or it is replayed, and at the end of a
// replay how many there were.
func (c *console) showEvent(e pz.Event) {
	isReplayed := e.Attrs.Get(pz.AttrMissed) == "1"
	isLast := isReplayed && e.Attrs.Get(pz.AttrMissedFinal) == "1"
	var raw bool
	var replayed int
	show := c.in.withLock(func() bool {
		if isReplayed {
			c.replayed++
		}
		raw, replayed = c.raw, c.replayed
		return c.events || isReplayed && replayed <= maxReplayShown
	})
	now := time.Now()
	switch {
	case show && raw:
		c.in.print(printable(strings.TrimSpace(string(e.XML()))))
	case show:
		c.in.print(now.Format(time.TimeOnly) + " " + printable(eventLine(e, now)))
	}
	if isLast {
		c.in.print(fmt.Sprintf("The server has replayed all that this client had missed: events: %d.", replayed))
	}
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
		return pz.Response{}, errors.New("not connected: connect <address> <client guid>")
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
		if client.PhoneNumber != "" {
			fields = append(fields, client.PhoneNumber)
		}
		fmt.Fprintln(c.out, printable(strings.Join(fields, " ")))
	}
	return nil
}

func (c *console) toggleEvents(words []string) error {
	form := strings.ToLower(strings.Join(words[1:], " "))
	if form != "" && form != "words" && form != "raw" {
		return errors.New("events [words|raw]")
	}
	c.in.withLock(func() bool {
		c.events = form != "" || !c.events
		c.raw = form == "raw" || form == "" && c.raw
		return true
	})
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
			fmt.Fprint(c.out, cmd.summary())
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

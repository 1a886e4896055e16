package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/kardianos/service"

	"pzbridge/internal/config"
)

// serviceName is the name of the service in systemd and in Windows.
const serviceName = "pzbridge"

// The kinds of services that the program can be, by the library's names for them.
const (
	onSystemd = "linux-systemd"
	onWindows = "windows-service"
)

func (p Program) service(ctx context.Context, args []string) error {
	fs := p.flags("service install|start|stop|uninstall [flags]", "Make the bridge a service, "+
		"which starts with the machine and is started again if it fails: of systemd on Linux, and of Windows.\n"+
		"It needs the rights of an administrator. The service takes its settings from the file that -env names, and\n"+
		"runs in the folder of that file. Its log is in the journal (journalctl -u pzbridge), or in the event log of\n"+
		"Windows. "+
		"\"pzbridge service run\" is what the service runs.")
	env := fs.String("env", ".env", "the `file` with the settings; for install and run")
	user := fs.String("user", "", "the `user` as whom the service runs; for install. "+
		"By default the owner of that file, on Windows LocalSystem")
	action := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		action, args = args[0], args[1:]
	}
	if err := parse(fs, args); err != nil {
		return err
	}
	switch action {
	case "run":
		return p.runService(ctx, *env)
	case "install":
		return p.installService(*env, *user)
	case "start", "stop", "uninstall":
		s, err := newService(nil, &service.Config{Name: serviceName})
		if err == nil {
			err = map[string]func() error{"start": s.Start, "stop": s.Stop, "uninstall": s.Uninstall}[action]()
		}
		return serviceError(action, err)
	case "":
		return usageError("say what to do with the service: install, start, stop or uninstall")
	}
	return usageError(fmt.Sprintf("there is no %q for a service: say install, start, stop or uninstall", action))
}

// newService returns the service of this machine. Fails if the machine has none of the kinds that
// are supported.
func newService(program service.Interface, cfg *service.Config) (service.Service, error) {
	s, err := service.New(program, cfg)
	if err == nil && s.Platform() != onSystemd && s.Platform() != onWindows {
		err = fmt.Errorf("there are services on Windows and with systemd, not with %s", s.Platform())
	}
	return s, err
}

// serviceError adds to an error what was to be done, and which right is missing.
func serviceError(action string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s the service: %w: run this as root, or in Windows as an administrator", action, err)
	}
	return fmt.Errorf("%s the service: %w", action, err)
}

// enter reads the file with the settings, and makes its folder the working directory, which the
// relative paths in it refer to.
func enter(env string) (file string, vars map[string]string, err error) {
	if file, err = filepath.Abs(env); err != nil {
		return "", nil, err
	}
	if vars, err = config.EnvironmentWith(file); err != nil {
		return "", nil, err
	}
	return file, vars, os.Chdir(filepath.Dir(file))
}

func (p Program) installService(env, user string) error {
	file, vars, err := enter(env)
	if err != nil {
		return err
	}
	if _, err := config.Load(vars); err != nil { // or the service would fail where nobody looks
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && user == "" {
		if user, err = ownerOf(file); err != nil {
			return err
		}
	}
	s, err := newService(nil, &service.Config{
		Name:        serviceName,
		DisplayName: serviceName,
		Description: serviceDescription,
		UserName:    user,
		Executable:  program,
		Arguments:   []string{"service", "run", "-env", file},
		Option: service.KeyValue{
			"SystemdScript":          Unit(program, file, user),
			"OnFailure":              "restart",
			"OnFailureDelayDuration": "10s",
		},
	})
	if err == nil {
		err = s.Install()
	}
	if err != nil {
		return serviceError("install", err)
	}
	fmt.Fprintf(p.Out, "The service %s is installed, with the settings of %s. Start it with: pzbridge service start\n",
		serviceName, file)
	return nil
}

const serviceDescription = "Prostie Zvonki to CRMs: events become signed webhooks"

// Unit returns the systemd unit of a bridge: program and env are absolute paths, and user may be
// empty for root. A wrong configuration, which has an exit code of its own, is not started again
// and again.
func Unit(program, env, user string) string {
	folder := filepath.ToSlash(filepath.Dir(env))
	return fmt.Sprintf(`[Unit]
Description=%s
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=%s service run -env %s
WorkingDirectory=%s
User=%s
Restart=always
RestartSec=5
RestartPreventExitStatus=%d
# A stop waits for the answers of the CRMs: longer than SHUTDOWN_GRACE.
TimeoutStopSec=90
# Nothing but its own files, and ports below 1024.
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_BIND_SERVICE
ProtectSystem=full
ReadWritePaths=%s

[Install]
WantedBy=multi-user.target
`, serviceDescription, quoteForUnit(program), quoteForUnit(env), strings.ReplaceAll(folder, "%", "%%"),
		cmp.Or(user, "root"), exitUsage, quoteForUnit(folder))
}

// quoteForUnit quotes an argument for systemd, which expands % and $ also between quotes.
func quoteForUnit(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(s) + `"`
}

// runService runs the bridge as the service does: with the settings of a file, in its folder.
func (p Program) runService(ctx context.Context, env string) error {
	if service.Platform() != onWindows || service.Interactive() {
		_, vars, err := enter(env)
		if err != nil {
			return err
		}
		return p.runBridge(ctx, vars)
	}
	h := &hosted{ended: make(chan struct{})}
	s, err := newService(h, &service.Config{Name: serviceName})
	if err != nil {
		return err
	}
	log, err := s.SystemLogger(nil)
	if err != nil {
		return err
	}
	p.Err = eventLog{log}
	h.run = func(ctx context.Context) error {
		_, vars, err := enter(env)
		if err != nil {
			return err
		}
		return p.runBridge(ctx, vars)
	}
	h.failed = func(err error) {
		_ = log.Error(fmt.Sprint("pzbridge: ", cmp.Or(err, errors.New("it has ended by itself"))))
		os.Exit(exitFailed) // so that Windows starts it again
	}
	return s.Run()
}

// hosted runs the bridge for the service manager of Windows.
type hosted struct {
	run    func(context.Context) error
	failed func(error) // does not return
	stop   context.CancelFunc
	ended  chan struct{}
}

// Start begins to run the bridge.
func (h *hosted) Start(service.Service) error {
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go func() {
		defer close(h.ended)
		if err := h.run(ctx); err != nil || ctx.Err() == nil {
			h.failed(err)
		}
	}()
	return nil
}

// Stop ends the bridge, and waits for that.
func (h *hosted) Stop(service.Service) error {
	h.stop()
	<-h.ended
	return nil
}

// eventLog writes the lines of the log to the event log of Windows, since a service has no other
// output there.
type eventLog struct{ log service.Logger }

// levelIn matches the beginning of a line up to its level, in either format.
var levelIn = regexp.MustCompile(`^(?:\{"time":"[^"]*","level":"|\S+ \S+ )([A-Z]+)`)

func (e eventLog) Write(line []byte) (int, error) {
	write := e.log.Info
	text := strings.TrimSuffix(string(line), "\n")
	if m := levelIn.FindStringSubmatch(text); m != nil {
		switch m[1] {
		case "ERROR", "ERR":
			write = e.log.Error
		case "WARN", "WRN":
			write = e.log.Warning
		}
	}
	if err := write(text); err != nil {
		return 0, err
	}
	return len(line), nil
}

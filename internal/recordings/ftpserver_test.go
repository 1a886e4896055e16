package recordings_test

import (
	"bufio"
	"fmt"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// ftpServer serves files over FTP, with one user.
type ftpServer struct {
	listener net.Listener
	password string

	mu       sync.Mutex
	files    map[string]string // by path
	requests []string          // all RETR and SIZE
	noSize   bool              // SIZE is unknown
	passive  string            // the host that PASV names; empty: the right one, by EPSV
	dialed   int               // connections for files
	busy     string            // a path that is refused for now
}

func newFTP(t *testing.T) *ftpServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &ftpServer{listener: l, password: "Geheim-123", files: map[string]string{}}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s
}

func (s *ftpServer) address(login string) string {
	return "ftp://" + login + s.listener.Addr().String()
}

func (s *ftpServer) put(path, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = content
}

func (s *ftpServer) serve(c net.Conn) {
	defer c.Close()
	in := textproto.NewReader(bufio.NewReader(c))
	say := func(format string, args ...any) { fmt.Fprintf(c, format+"\r\n", args...) }
	say("220 ready")
	var data net.Listener
	user, isIn := "", false
	for {
		line, err := in.ReadLine()
		if err != nil {
			return
		}
		command, argument, _ := strings.Cut(line, " ")
		switch command = strings.ToUpper(command); {
		case command == "USER":
			user = argument
			say("331 and the password")
		case command == "PASS":
			if isIn = user == "pbx" && argument == s.password; isIn {
				say("230 in")
			} else {
				say("530 wrong password %s", argument)
			}
		case command == "QUIT":
			say("221 bye")
			return
		case command == "TYPE" || command == "OPTS":
			say("200 yes")
		case !isIn:
			say("530 sign in first")
		case command == "EPSV" && s.passiveHost() == "":
			if data, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return
			}
			say("229 passive (|||%d|)", data.Addr().(*net.TCPAddr).Port)
		case command == "PASV":
			if data, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return
			}
			port := data.Addr().(*net.TCPAddr).Port
			host := strings.ReplaceAll(s.passiveHost(), ".", ",")
			say("227 passive (%s,%d,%d)", host, port>>8, port&0xff)
		case argument != "" && argument == s.busy:
			say("450 %s: file busy", argument)
		case command == "SIZE" && !s.noSize:
			content, ok := s.get(line, argument)
			if !ok {
				say("550 no such file")
				continue
			}
			say("213 " + strconv.Itoa(len(content)))
		case command == "RETR":
			content, ok := s.get(line, argument)
			if !ok {
				say("550 no such file")
				continue
			}
			say("150 it comes")
			to, err := data.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.dialed++
			s.mu.Unlock()
			_, _ = to.Write([]byte(content))
			_ = to.Close()
			_ = data.Close()
			say("226 done")
		default:
			say("502 unknown")
		}
	}
}

func (s *ftpServer) passiveHost() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.passive
}

func (s *ftpServer) get(line, path string) (content string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, line)
	content, ok = s.files[path]
	return content, ok
}

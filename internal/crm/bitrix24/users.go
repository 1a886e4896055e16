package bitrix24

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"pzbridge/outbox/store"
)

// users are the portal's employees by extension, as its field of that name has them.
type users struct {
	list    atomic.Pointer[[]User]
	reading chan struct{} // holds one while somebody reads the list, which guards the rest
	read    time.Time     // when the list was read
	tried   time.Time     // when it was tried to read it
}

func newUsers() users { return users{reading: make(chan struct{}, 1)} }

// known returns the list as it was read last.
func (u *users) known() []User {
	if list := u.list.Load(); list != nil {
		return *list
	}
	return nil
}

// User is an employee of the portal.
type User struct {
	ID        int
	Extension string // empty: none
	Email     string
	Name      string
}

const (
	// usersLife is how long the list counts.
	usersLife = 5 * time.Minute
	// usersPause is the least time between two tries.
	usersPause = 30 * time.Second
	// maxPages bounds a list, of 50 users a page.
	maxPages = 40
)

// readUsers reads the list of active employees. Its outcome is Done if it was read whole.
func (s *Sender) readUsers(ctx context.Context) ([]User, answer) {
	var list []User
	var a answer
	start := 0
	for range maxPages {
		a = s.do(ctx, "user.get", map[string]any{
			"FILTER": map[string]any{"ACTIVE": true, "USER_TYPE": "employee"}, "start": start,
		}, false, nil)
		if a.Verdict != store.Done {
			return nil, a
		}
		for _, u := range elements[struct {
			ID        text `json:"ID"`
			Extension text `json:"UF_PHONE_INNER"`
			Email     text `json:"EMAIL"`
			Name      text `json:"NAME"`
			LastName  text `json:"LAST_NAME"`
		}](a.result) {
			if id, err := strconv.Atoi(string(u.ID)); err == nil {
				name := strings.TrimSpace(string(u.Name + " " + u.LastName))
				list = append(list, User{id, s.extension(string(u.Extension)), string(u.Email), name})
			}
		}
		if a.next <= start {
			break
		}
		start = a.next
	}
	// Of two with one extension the lower ID counts.
	slices.SortFunc(list, func(a, b User) int { return a.ID - b.ID })
	return list, a
}

// done is what stands for a success that took no request.
var done = answer{Outcome: store.Outcome{Verdict: store.Done}}

// find returns the ID of a user, 0 if there is none. It reads the list if it is old, or if it does
// not have the user. While the list cannot be read, the last one counts; without any, the outcome
// is not Done.
func (s *Sender) find(ctx context.Context, is func(User) bool) (int, answer) {
	u := &s.users
	select {
	case u.reading <- struct{}{}:
		defer func() { <-u.reading }()
	case <-ctx.Done():
		return 0, answer{}
	}
	now := time.Now()
	i := slices.IndexFunc(u.known(), is)
	isOld := now.Sub(u.read) > usersLife || i < 0
	if u.list.Load() == nil || isOld && now.Sub(u.tried) > usersPause {
		u.tried = now
		list, a := s.readUsers(ctx)
		switch {
		case a.Verdict == store.Done:
			u.list.Store(&list)
			u.read = now
			i = slices.IndexFunc(list, is)
		case u.list.Load() == nil || a.Verdict == store.CutOff:
			return 0, a
		}
	}
	if i < 0 {
		return 0, done
	}
	return u.known()[i].ID, done
}

// userOf returns the ID of the user with an extension: that of the configuration, or of the portal.
// It is 0 if nobody has it.
func (s *Sender) userOf(ctx context.Context, extension string) (int, answer) {
	if extension == "" {
		return 0, done
	}
	if name := s.settings.People.Users[extension]; name != "" {
		return s.userNamed(ctx, name)
	}
	return s.find(ctx, func(u User) bool { return u.Extension == extension })
}

// Unknown returns those of some extensions that nobody has. While the list of users cannot be read,
// it returns none.
func (s *Sender) Unknown(ctx context.Context, extensions []string) (list []string) {
	for _, extension := range extensions {
		if id, a := s.userOf(ctx, extension); id == 0 && a.Verdict == store.Done {
			list = append(list, extension)
		}
	}
	return list
}

// userNamed returns the ID of a user who is named by ID or by e-mail address, 0 if there is none.
func (s *Sender) userNamed(ctx context.Context, name string) (int, answer) {
	if strings.Contains(name, "@") {
		return s.find(ctx, func(u User) bool { return strings.EqualFold(u.Email, name) })
	}
	id, _ := strconv.Atoi(name)
	return id, done
}

// defaultUser returns the ID of the user for calls to a line that are nobody's: that of the
// configuration, or the one whose webhook it is, or who has installed the application.
func (s *Sender) defaultUser(ctx context.Context, line string) (int, answer) {
	if name := s.settings.People.DefaultName(line); name != "" {
		if id, a := s.userNamed(ctx, name); id != 0 || a.Verdict != store.Done {
			return id, a
		}
	}
	return s.ownerID(ctx)
}

// ownerID returns the ID of the user in whose name all requests are made.
func (s *Sender) ownerID(ctx context.Context) (int, answer) {
	if s.app == nil {
		return s.owner, done
	}
	t, _, o := s.app.read(ctx)
	return t.User, answer{Outcome: o}
}

// extensionOf returns the extension of a user, "" if there is none.
func (s *Sender) extensionOf(ctx context.Context, id int) (string, answer) {
	if _, a := s.find(ctx, func(u User) bool { return u.ID == id }); a.Verdict != store.Done {
		return "", a
	}
	found := entity{AssignedByID: text(strconv.Itoa(id))}
	for _, u := range s.users.known() {
		if u.ID == id {
			found.AssignedBy.Extension = text(u.Extension)
		}
	}
	return s.telephoneOf(&found), done
}

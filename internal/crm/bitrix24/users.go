package bitrix24

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"pzbridge/outbox/store"
)

// users are the portal's employees by extension, as its field of that name has them.
type users struct {
	mu    sync.Mutex
	list  []User
	read  time.Time // when the list was read
	tried time.Time // when it was tried to read it
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
		var page []struct {
			ID        json.Number `json:"ID"` // as text or as a number
			Extension string      `json:"UF_PHONE_INNER"`
			Email     string      `json:"EMAIL"`
			Name      string      `json:"NAME"`
			LastName  string      `json:"LAST_NAME"`
		}
		if err := json.Unmarshal(a.result, &page); err != nil {
			a.Verdict, a.Err = store.Again, err
			return nil, a
		}
		for _, u := range page {
			id, err := strconv.Atoi(u.ID.String())
			if err == nil {
				name := strings.TrimSpace(u.Name + " " + u.LastName)
				list = append(list, User{id, strings.TrimSpace(u.Extension), u.Email, name})
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

// find returns the ID of a user, 0 if there is none. It reads the list if it is old, or if it does
// not have the user. While the list cannot be read, the last one counts; without any, the outcome
// is not Done.
func (s *Sender) find(ctx context.Context, is func(User) bool) (int, answer) {
	u := &s.users
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	i := slices.IndexFunc(u.list, is)
	isOld := now.Sub(u.read) > usersLife || i < 0
	if (isOld && now.Sub(u.tried) > usersPause) || u.list == nil {
		u.tried = now
		list, a := s.readUsers(ctx)
		switch {
		case a.Verdict == store.Done:
			u.list, u.read = list, now
			i = slices.IndexFunc(u.list, is)
		case u.list == nil || a.Verdict == store.CutOff:
			return 0, a
		}
	}
	if i < 0 {
		return 0, answer{Outcome: store.Outcome{Verdict: store.Done}}
	}
	return u.list[i].ID, answer{Outcome: store.Outcome{Verdict: store.Done}}
}

// userOf returns the ID of the user with an extension: that of the configuration, or of the portal.
// It is 0 if nobody has it.
func (s *Sender) userOf(ctx context.Context, extension string) (int, answer) {
	done := answer{Outcome: store.Outcome{Verdict: store.Done}}
	if extension == "" {
		return 0, done
	}
	if name := s.settings.People.Users[extension]; name != "" {
		return s.userNamed(ctx, name)
	}
	return s.find(ctx, func(u User) bool { return u.Extension == extension })
}

// userNamed returns the ID of a user who is named by ID or by e-mail address, 0 if there is none.
func (s *Sender) userNamed(ctx context.Context, name string) (int, answer) {
	if strings.Contains(name, "@") {
		return s.find(ctx, func(u User) bool { return strings.EqualFold(u.Email, name) })
	}
	id, _ := strconv.Atoi(name)
	return id, answer{Outcome: store.Outcome{Verdict: store.Done}}
}

// defaultUser returns the ID of the user for calls to a line that are nobody's: that of the
// configuration, or the one whose webhook it is.
func (s *Sender) defaultUser(ctx context.Context, line string) (int, answer) {
	if name := s.settings.People.DefaultName(line); name != "" {
		if id, a := s.userNamed(ctx, name); id != 0 || a.Verdict != store.Done {
			return id, a
		}
	}
	return s.owner, answer{Outcome: store.Outcome{Verdict: store.Done}}
}

// extensionOf returns the extension of a user, "" if there is none.
func (s *Sender) extensionOf(ctx context.Context, id int) (string, answer) {
	for extension, name := range s.settings.People.Users {
		if user, a := s.userNamed(ctx, name); a.Verdict == store.Done && user == id {
			return extension, a
		}
	}
	_, a := s.find(ctx, func(u User) bool { return u.ID == id })
	if a.Verdict != store.Done {
		return "", a
	}
	s.users.mu.Lock()
	defer s.users.mu.Unlock()
	i := slices.IndexFunc(s.users.list, func(u User) bool { return u.ID == id })
	if i < 0 {
		return "", a
	}
	return s.users.list[i].Extension, a
}

package bitrix24test

import (
	"net/http"
	"slices"
	"strconv"
)

// User is an employee of the portal.
type User struct {
	ID             int
	Name           string
	LastName       string
	Email          string
	Extension      string // UF_PHONE_INNER
	WorkPhone      string
	PersonalMobile string
	Inactive       bool
}

// Users returns the portal's users.
func (p *Portal) Users() []User {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.users)
}

// SetUsers replaces the portal's users. The webhook is of the user 1.
func (p *Portal) SetUsers(users []User) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users = slices.Clone(users)
}

// user returns the user with this identifier; the zero User if there is none.
func (p *Portal) user(id int) User {
	i := slices.IndexFunc(p.users, func(u User) bool { return u.ID == id })
	if i < 0 {
		return User{}
	}
	return p.users[i]
}

// isActive reports whether an active user has this identifier.
func (p *Portal) isActive(id int) bool {
	user := p.user(id)
	return user.ID != 0 && !user.Inactive
}

// byExtension returns the identifier of the first active user who has an extension; 0 if none has.
func (p *Portal) byExtension(extension string) int {
	for _, user := range p.users {
		if extension != "" && user.Extension == extension && !user.Inactive {
			return user.ID
		}
	}
	return 0
}

// employee returns the user of a register or finish: USER_ID, or else the one whose extension is
// USER_PHONE_INNER; 0 if neither names one.
func (p *Portal) employee(q query) int {
	if id := q.params.number("USER_ID"); id != 0 {
		return id
	}
	return p.byExtension(q.params.text("USER_PHONE_INNER"))
}

func (u User) row() row {
	r := row{
		"ID": strconv.Itoa(u.ID), "ACTIVE": !u.Inactive, "USER_TYPE": "employee",
		"NAME": u.Name, "LAST_NAME": u.LastName, "EMAIL": u.Email,
		"WORK_PHONE": u.WorkPhone, "PERSONAL_MOBILE": u.PersonalMobile, "UF_PHONE_INNER": nil,
	}
	if u.Extension != "" {
		r["UF_PHONE_INNER"] = u.Extension
	}
	return r
}

func (p *Portal) getUsers(q query) answer {
	rows := make([]row, 0, len(p.users))
	for _, user := range p.users {
		rows = append(rows, user.row())
	}
	return page(rows, q)
}

func (p *Portal) currentUser(q query) answer {
	return done(p.user(q.user).row())
}

func (p *Portal) profile(q query) answer {
	user := p.user(q.user)
	return done(row{"ID": strconv.Itoa(user.ID), "ADMIN": q.isAdmin(), "NAME": user.Name, "LAST_NAME": user.LastName})
}

func (p *Portal) getStatistics(q query) answer {
	if p.switches.noStatistics {
		return refused(http.StatusForbidden, "ACCESS_DENIED", "Access denied!")
	}
	return page(p.statistics, q)
}

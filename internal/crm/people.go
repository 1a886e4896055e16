package crm

import (
	"errors"
	"slices"
	"strings"

	"pzbridge/internal/phone"
)

// Missed says whose a call is that nobody has answered.
type Missed string

// Each falls through to the next: the one who is responsible for the client, the one whose
// telephone rang last, the default user.
const (
	MissedResponsible Missed = "responsible"
	MissedLast        Missed = "last"
	MissedDefault     Missed = "default"
)

// MissedPolicies lists them.
var MissedPolicies = []Missed{MissedResponsible, MissedLast, MissedDefault}

// Person is an employee: the extension at the exchange, and the name of the user at the CRM. One of
// the two may be empty.
type Person struct{ Extension, Name string }

// People says who is who.
type People struct {
	Users         map[string]string // the CRM's names of users by extension
	Default       string            // an extension, or a CRM's name of a user; empty: none
	DefaultByLine map[string]string // the same for calls to some of the company's own numbers
	Missed        Missed
	Plan          *phone.Plan
}

// Of returns the employee with an extension. A CRM that has no other name for the user knows it by
// the extension.
func (p *People) Of(extension string) Person {
	name := p.Users[extension]
	if name == "" {
		name = extension
	}
	return Person{extension, name}
}

// Named returns the employee whom a CRM names: by an extension, by one of Users, or by either with
// an @ and a domain. It returns false if none is meant, or nobody with that name is known.
func (p *People) Named(name string) (Person, bool) {
	name = strings.TrimSpace(name)
	for {
		if p.Plan.IsInternal(name) && strings.Trim(name, "0") != "" {
			return p.Of(name), true
		}
		for extension, user := range p.Users {
			if strings.EqualFold(user, name) {
				return Person{extension, user}, true
			}
		}
		before, _, hasDomain := strings.Cut(name, "@")
		if !hasDomain {
			return Person{}, false
		}
		name = before
	}
}

// DefaultFor returns the employee for calls to one of the company's own numbers that are nobody
// else's, and false if there is none.
func (p *People) DefaultFor(line string) (Person, bool) {
	name := p.DefaultName(line)
	if name == "" {
		return Person{}, false
	}
	if person, known := p.Named(name); known {
		return person, true
	}
	return Person{Name: name}, true
}

// DefaultName is DefaultFor as it is configured, "" if there is none.
func (p *People) DefaultName(line string) string {
	if name, ok := p.DefaultByLine[p.Plan.Client(line)]; ok && line != "" {
		return name
	}
	return p.Default
}

// Extensions lists the extensions of Users, in order.
func (p *People) Extensions() []string {
	var list []string
	for extension := range p.Users {
		list = append(list, extension)
	}
	slices.Sort(list)
	return list
}

var errNoClient = errors.New("it is not the number of a client, such as +73430112233")

// ClientToTry returns the number of a client of whom a missed call is to be entered.
func (p *People) ClientToTry(number string) (string, error) {
	client := p.Plan.Client(number)
	if client == "" || p.Plan.IsInternal(number) {
		return "", errNoClient
	}
	return client, nil
}

package bitrix24test

import (
	"slices"
	"strconv"
	"strings"
)

// client is a CRM entity that has a phone number.
type client struct {
	phone       string // its last 10 digits
	entityType  string // CONTACT, LEAD, or COMPANY
	entityID    int
	responsible int
	timeman     string
}

// searchOrder is the order in which the portal looks for the entities of a number.
var searchOrder = []string{"CONTACT", "LEAD", "COMPANY"}

// Assign gives a number to a CRM entity (CONTACT, LEAD, or COMPANY) and the entity to an employee.
// timemanStatus is whether that employee is at work: OPENED, CLOSED, PAUSED, or EXPIRED; empty if
// the portal does not keep working time.
func (p *Portal) Assign(phone, entityType string, entityID, responsible int, timemanStatus string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients = slices.DeleteFunc(p.clients, func(c client) bool {
		return c.phone == lastDigits(phone) && c.entityType == entityType && c.entityID == entityID
	})
	p.clients = append(p.clients, client{lastDigits(phone), entityType, entityID, responsible, timemanStatus})
}

// find returns the entities that have a number, in the order of the search.
func (p *Portal) find(phone string) (found []client) {
	for _, entityType := range searchOrder {
		for _, c := range p.clients {
			if c.entityType == entityType && c.phone == lastDigits(phone) {
				found = append(found, c)
			}
		}
	}
	return found
}

// lastDigits returns the last 10 digits of a number, by which the CRM compares numbers.
func lastDigits(phone string) string {
	digits := strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, phone)
	return digits[max(0, len(digits)-10):]
}

// entityID returns the identifier of a CRM entity as the portal gives it: 0 is null.
func (p *Portal) entityID(id int) any {
	switch {
	case id == 0:
		return nil
	case p.switches.textIDs:
		return strconv.Itoa(id)
	default:
		return id
	}
}

func (p *Portal) searchCRMEntities(q query) answer {
	phone := q.params.text("PHONE_NUMBER")
	if phone == "" {
		return invalid("PHONE_NUMBER is empty")
	}
	entities := []row{}
	for _, c := range p.find(phone) {
		user := p.user(c.responsible)
		assigned := row{
			"ID": strconv.Itoa(c.responsible), "USER_PHONE_INNER": user.Extension, "WORK_PHONE": user.WorkPhone,
			"PERSONAL_PHONE": "", "PERSONAL_MOBILE": user.PersonalMobile,
		}
		if c.timeman != "" {
			assigned["TIMEMAN_STATUS"] = c.timeman
		}
		entities = append(entities, row{
			"CRM_ENTITY_TYPE": c.entityType, "CRM_ENTITY_ID": p.entityID(c.entityID), "NAME": "Client " + phone,
			"ASSIGNED_BY_ID": c.responsible, "ASSIGNED_BY": assigned,
		})
	}
	return done(entities)
}

// Comment is a comment in the timeline of a CRM entity.
type Comment struct {
	EntityType string // in lower case: contact, company, lead, deal
	EntityID   int
	Text       string
	AuthorID   int
}

// Comments returns the comments in the order in which they were made.
func (p *Portal) Comments() []Comment {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.comments)
}

func (p *Portal) addComment(q query) answer {
	fields := q.params.object("FIELDS")
	c := Comment{
		EntityType: fields.text("ENTITY_TYPE"), EntityID: fields.number("ENTITY_ID"), Text: fields.text("COMMENT"),
		AuthorID: fields.number("AUTHOR_ID"),
	}
	switch {
	case !slices.Contains([]string{"contact", "company", "lead", "deal"}, c.EntityType):
		p.fault("A comment has the ENTITY_TYPE %q.", c.EntityType)
		return invalid("ENTITY_TYPE is not supported")
	case c.EntityID == 0:
		return invalid("ENTITY_ID is not set")
	case c.Text == "":
		return invalid("COMMENT is not set")
	}
	p.comments = append(p.comments, c)
	return done(p.next())
}

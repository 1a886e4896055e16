package store

import (
	"context"
	"time"

	"github.com/google/uuid"
)

// Audits keep what operators have done.
type Audits interface {
	// AddAudit stores an entry, unless the one with its ID is among the latest. The newest
	// MaxAudits are kept.
	AddAudit(ctx context.Context, e Audit) error
	// Audits returns up to limit entries, the latest first.
	Audits(ctx context.Context, limit int) ([]Audit, error)
}

// MaxAudits is how many entries are kept.
const MaxAudits = 1000

// Audit is something that an operator has done.
type Audit struct {
	ID     uuid.UUID
	At     time.Time
	Action AuditAction
	// From is the address of the browser or the program that has requested it, Through the way:
	// dashboard or API.
	From, Through string
	// Subject is what it was done to, such as an endpoint or a delivery. It holds no number of a
	// person.
	Subject string
	Count   int // of deliveries or events, if there were several
}

// AuditAction is the kind of an Audit.
type AuditAction string

// The actions.
const (
	AuditSignedIn       AuditAction = "signed_in"
	AuditSignedOut      AuditAction = "signed_out"
	AuditPaused         AuditAction = "paused"      // the connection to the exchange
	AuditResumed        AuditAction = "resumed"     // likewise
	AuditRedelivered    AuditAction = "redelivered" // one delivery
	AuditRedeliveredAll AuditAction = "redelivered_many"
	AuditTested         AuditAction = "tested" // an endpoint
	AuditForgot         AuditAction = "forgot" // a person's number
	AuditBackedUp       AuditAction = "backed_up"
)

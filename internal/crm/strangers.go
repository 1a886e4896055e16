package crm

import (
	"log/slog"
	"sync"
)

// Strangers are extensions that nobody in a CRM has. Each is told of once.
type Strangers struct {
	logger *slog.Logger

	mu   sync.Mutex
	told map[string]bool
}

// maxStrangers bounds how many are told of.
const maxStrangers = 100

// NewStrangers returns an empty list.
func NewStrangers(logger *slog.Logger) *Strangers {
	return &Strangers{logger: logger, told: map[string]bool{}}
}

// Met tells of an extension, unless that was done.
func (s *Strangers) Met(endpoint, extension string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told[extension] || len(s.told) == maxStrangers {
		return
	}
	s.told[extension] = true
	s.logger.Warn("an extension has no user in the CRM",
		"endpoint", endpoint, "extension", extension)
}

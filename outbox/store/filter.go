package store

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"pzbridge/internal/telephony"
)

// Filter selects the types of events that an endpoint gets: types by name, and prefixes with a star
// ("call.*").
type Filter []string

// ParseFilter reads a comma-separated list. Its error names the entries that match no type.
func ParseFilter(list string) (Filter, error) {
	var f Filter
	var wrong []string
	types := slices.Concat(telephony.EventTypes, telephony.OperationalTypes)
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.TrimSpace(entry)
		prefix, star := strings.CutSuffix(entry, ".*")
		if !slices.ContainsFunc(types, Filter{entry}.Match) || star && prefix == "" {
			wrong = append(wrong, strconv.Quote(entry))
			continue
		}
		f = append(f, entry)
	}
	if wrong != nil {
		return nil, fmt.Errorf("there is no event type %s: use %s, or a prefix such as call.*",
			strings.Join(wrong, ", "), typeNames())
	}
	return f, nil
}

// Match reports whether the filter selects a type.
func (f Filter) Match(t telephony.EventType) bool {
	for _, entry := range f {
		prefix, star := strings.CutSuffix(entry, "*")
		if entry == string(t) || star && strings.HasSuffix(prefix, ".") && strings.HasPrefix(string(t), prefix) {
			return true
		}
	}
	return false
}

func typeNames() string {
	var names []string
	for _, t := range slices.Concat(telephony.EventTypes, telephony.OperationalTypes) {
		names = append(names, string(t))
	}
	return strings.Join(names, ", ")
}

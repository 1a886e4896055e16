package config

import (
	"fmt"
	"io"
	"net/url"
	"reflect"
	"strings"
	"text/tabwriter"
)

// setting is one variable and its value, as it may be shown.
type setting struct{ name, value string }

// Describe writes every variable with its value, secrets hidden.
func (c Config) Describe(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range c.settings {
		fmt.Fprintf(table, "%s\t%s\n", s.name, s.value)
	}
	return table.Flush()
}

// settings lists the fields of a struct of text.
func settings(prefix string, t any) []setting {
	v := reflect.ValueOf(t)
	list := make([]setting, v.NumField())
	for i, f := range params(t) {
		name := prefix + f.Key
		list[i] = setting{name, show(name, v.Field(i).String())}
	}
	return list
}

func show(name, value string) string {
	switch {
	case value == "":
		return "-"
	case strings.HasPrefix(name, "ENDPOINT_") && strings.HasSuffix(name, "_URL"):
		return showURL(value)
	case secretNames.MatchString(name):
		return "(hidden)"
	case strings.HasSuffix(name, "_HEADERS"):
		return showHeaders(value)
	}
	return value
}

// showURL shows where an address points and hides the rest: in the path and the query of a webhook's address stand tokens.
func showURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(hidden)"
	}
	short := u.Scheme + "://" + u.Host
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		short += "/… (the rest is hidden)"
	}
	return short
}

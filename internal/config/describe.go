package config

import (
	"fmt"
	"io"
	"net/url"
	"reflect"
	"strings"
	"text/tabwriter"
)

// setting is a variable and its value with secrets redacted.
type setting struct{ name, value string }

// Describe writes every variable with its value to w, with secrets redacted.
func (c Config) Describe(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range c.settings {
		fmt.Fprintf(table, "%s\t%s\n", s.name, s.value)
	}
	return table.Flush()
}

// settings lists the variables of t, a text or an endpointText, with secrets redacted.
func settings(prefix string, t any) []setting {
	v := reflect.ValueOf(t)
	list := make([]setting, v.NumField())
	for i, f := range params(t) {
		name := prefix + f.Key
		list[i] = setting{name, redact(name, v.Field(i).String())}
	}
	return list
}

func redact(name, value string) string {
	switch {
	case value == "":
		return "-"
	case strings.HasPrefix(name, "ENDPOINT_") && strings.HasSuffix(name, "_URL"):
		return redactURL(value)
	case name == "OUTBOX_URL":
		return redactDatabase(value)
	case secretNames.MatchString(name):
		return "(hidden)"
	case strings.HasSuffix(name, "_HEADERS"):
		return redactHeaders(value)
	}
	return value
}

// redactURL keeps the scheme and the host of an address. The rest is hidden, since the path and the
// query of a webhook's address often contain tokens.
func redactURL(s string) string {
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

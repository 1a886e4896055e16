package pz

import (
	"errors"
	"fmt"
	"strings"
)

// generateKinds gives, for each kind of the vendor's generate command, the event type and the
// arguments in order. Those after "|" are optional.
var generateKinds = map[string]struct{ event, arguments string }{
	"incoming":  {TypeTransferRequested, "From | Line"},
	"transfer":  {TypeIncoming, "From To | Line ClientGUID CallID"},
	"transans":  {TypeIncomingAnswered, "From To | Line ClientGUID CallID"},
	"outcoming": {TypeOutgoing, "From To | ClientGUID CallID"},
	"outans":    {TypeOutgoingAnswered, "From To | ClientGUID CallID"},
	"history":   {TypeCompleted, "From To Start End Duration Direction | Record Line CallID"},
}

const smsArguments = "From To ClientGUID CallID Smstext"

// ParseGenerate turns a command line of the vendor's Diagnostic program, "generate <kind> …" or
// "sms …", split into at least one word, into the fields of a Generate request. Its errors are
// sentences for the person who typed the line.
func ParseGenerate(words []string) (Attrs, error) {
	event, arguments := TypeSMS, smsArguments
	given := words[1:]
	if strings.EqualFold(words[0], "generate") {
		if len(given) == 0 {
			return nil, errors.New("generate what? incoming, transfer, transans, outcoming, outans or history")
		}
		kind, ok := generateKinds[strings.ToLower(given[0])]
		if !ok {
			return nil, fmt.Errorf("there is no %q to generate: "+
				"use incoming, transfer, transans, outcoming, outans or history", given[0])
		}
		event, arguments, given = kind.event, kind.arguments, given[1:]
	}
	required, optional, _ := strings.Cut(arguments, "|")
	names := append(strings.Fields(required), strings.Fields(optional)...)
	if len(given) < len(strings.Fields(required)) || len(given) > len(names) {
		command := strings.Join(words[:len(words)-len(given)], " ")
		return nil, fmt.Errorf("%s takes the arguments %s (those after | may be left out)", command, arguments)
	}
	fields := Attrs{{Name: "Event", Value: event}}
	for i, value := range given {
		if names[i] == "Direction" {
			direction, ok := map[string]string{"in": "0", "out": "1"}[strings.ToLower(value)]
			if !ok {
				return nil, fmt.Errorf("the direction is in or out, not %q", value)
			}
			value = direction
		}
		fields = append(fields, Attr{Name: names[i], Value: value})
	}
	return fields, nil
}

// SplitWords splits a line at blanks and tabs; double quotes keep words together. It fails if a
// quote is not closed.
func SplitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quoted := false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, inWord = !quoted, true
		case (r == ' ' || r == '\t') && !quoted:
			if inWord {
				words = append(words, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quoted {
		return nil, errors.New("a quote is opened and not closed")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

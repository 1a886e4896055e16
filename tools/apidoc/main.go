// Command apidoc writes docs/api.md, the reference of the API for people, from the description
// transferapi/openapi.yaml. Run it in the folder tools after a change of the description:
//
//	go run ./apidoc
package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The files, as seen from the folder tools.
const (
	source = "../transferapi/openapi.yaml"
	target = "../docs/api.md"
)

func main() {
	text, err := reference(source)
	if err == nil {
		err = os.WriteFile(target, []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "apidoc:", err)
		os.Exit(1)
	}
}

// reference returns the reference of the API that a file describes.
func reference(file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var document yaml.Node
	if err = yaml.Unmarshal(content, &document); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	w := &writer{root: node{document.Content[0]}}
	w.reference()
	return w.text.String(), nil
}

// node is a YAML mapping, whose members keep the order of the file, or one of its values. The zero
// value is an absent one.
type node struct{ yaml *yaml.Node }

type member struct {
	name  string
	value node
}

func (n node) members() (list []member) {
	if n.yaml == nil || n.yaml.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(n.yaml.Content); i += 2 {
		list = append(list, member{n.yaml.Content[i].Value, node{n.yaml.Content[i+1]}})
	}
	return list
}

func (n node) items() (list []node) {
	if n.yaml == nil || n.yaml.Kind != yaml.SequenceNode {
		return nil
	}
	for _, item := range n.yaml.Content {
		list = append(list, node{item})
	}
	return list
}

// get returns the value at a path of names.
func (n node) get(path ...string) node {
	for _, name := range path {
		next := node{}
		for _, m := range n.members() {
			if m.name == name {
				next = m.value
			}
		}
		n = next
	}
	return n
}

// text returns the value of a string.
func (n node) text() string {
	if n.yaml == nil {
		return ""
	}
	return strings.TrimSpace(n.yaml.Value)
}

// escaped replaces each "<" that is not within backticks, since Markdown takes it for a tag.
func escaped(text string) string {
	parts := strings.Split(text, "`")
	for i := 0; i < len(parts); i += 2 {
		parts[i] = strings.ReplaceAll(parts[i], "<", "&lt;")
	}
	return strings.Join(parts, "`")
}

// line returns the text in one line.
func (n node) line() string { return strings.Join(strings.Fields(n.text()), " ") }

type writer struct {
	root node
	text strings.Builder
}

// paragraph writes a text and an empty line, or nothing for an empty text.
func (w *writer) paragraph(text string) {
	if text != "" {
		w.text.WriteString(text + "\n\n")
	}
}

// resolve follows a $ref to what it names.
func (w *writer) resolve(n node) node {
	for ref := n.get("$ref").text(); ref != ""; ref = n.get("$ref").text() {
		n = w.root.get(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	}
	return n
}

// schemaName returns the name of a schema that n refers to, else an empty one.
func schemaName(n node) string {
	name, ok := strings.CutPrefix(n.get("$ref").text(), "#/components/schemas/")
	if !ok {
		return ""
	}
	return name
}

var notInAnchors = regexp.MustCompile(`[^a-z0-9_ -]`)

// link returns a link to a heading of the page.
func link(heading string) string {
	anchor := strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
	return "[" + heading + "](#" + anchor + ")"
}

// cell makes a text fit into a table.
func cell(text string) string { return strings.ReplaceAll(escaped(text), "|", "\\|") }

func (w *writer) reference() {
	info := w.root.get("info")
	w.paragraph("# API reference")
	w.paragraph("<!-- Made from transferapi/openapi.yaml by tools/apidoc. Do not edit it here. -->")
	w.paragraph("How to use it is in the [guide for CRM developers](developers.md). The same for programs is " +
		"[openapi.yaml](../transferapi/openapi.yaml), which each bridge serves at `/openapi.yaml`.")
	w.paragraph(escaped(info.get("description").text()))
	w.paragraph("\"(operator)\" marks what only the operator's token may do.")
	w.text.WriteString("| request | |\n|---|---|\n")
	w.operations("paths", func(heading string, operation node) {
		fmt.Fprintf(&w.text, "| %s | %s |\n", link(heading), cell(operation.get("summary").line()))
	})
	w.text.WriteString("\n")
	w.paragraph("## Errors")
	w.paragraph("Every request can be answered with a " + link("Problem") + ". These are its codes.")
	w.paragraph(escaped(w.root.get("components", "schemas", "ErrorCode", "description").text()))
	w.paragraph("## Requests")
	w.operations("paths", w.operation)
	w.paragraph("## Webhooks")
	w.paragraph("What the bridge sends to a CRM.")
	w.operations("webhooks", w.operation)
	w.paragraph("## Schemas")
	for _, m := range w.root.get("components", "schemas").members() {
		if m.name != "ErrorCode" {
			w.schema(m.name, m.value)
		}
	}
}

// operations calls write for each operation of the paths or of the webhooks.
func (w *writer) operations(of string, write func(heading string, operation node)) {
	for _, path := range w.root.get(of).members() {
		for _, method := range path.value.members() {
			write(strings.ToUpper(method.name)+" "+path.name, method.value)
		}
	}
}

func (w *writer) operation(heading string, operation node) {
	w.paragraph("### " + heading)
	w.paragraph(escaped(operation.get("summary").line()) + ".")
	w.paragraph(escaped(operation.get("description").text()))
	if security := operation.get("security"); security.yaml != nil && len(security.items()) == 0 &&
		strings.Contains(heading, "/") {
		w.paragraph("Needs no token.")
	}
	if parameters := operation.get("parameters").items(); len(parameters) > 0 {
		w.text.WriteString("| parameter | in | type | |\n|---|---|---|---|\n")
		for _, p := range parameters {
			p = w.resolve(p)
			name := "`" + p.get("name").text() + "`"
			if p.get("required").text() == "true" {
				name += " *"
			}
			schema := p.get("schema")
			fmt.Fprintf(&w.text, "| %s | %s | %s | %s |\n", name, p.get("in").text(), cell(w.typeOf(schema)),
				cell(strings.TrimSpace(p.get("description").line()+defaultOf(schema))))
		}
		w.text.WriteString("\n")
	}
	for _, content := range w.resolve(operation.get("requestBody")).get("content").members() {
		w.body("Body, `"+content.name+"`", content.value.get("schema"))
	}
	for _, response := range operation.get("responses").members() {
		if response.name == "default" {
			continue // the problem of the chapter on errors
		}
		resolved := w.resolve(response.value)
		title := "**" + response.name + "** " + resolved.get("description").line()
		contents := resolved.get("content").members()
		if len(contents) == 0 {
			w.paragraph(title + ".")
		}
		for _, content := range contents {
			w.body(title, content.value.get("schema"))
		}
	}
}

// body writes the schema of a request or of a response: its name, or its fields.
func (w *writer) body(title string, schema node) {
	fields := w.fields(schema)
	switch {
	case schemaName(schema) != "" || len(fields) == 0 && schema.yaml != nil:
		w.paragraph(title + ": " + w.typeOf(schema) + ".")
	case len(fields) == 0:
		w.paragraph(title + ".")
	default:
		w.paragraph(title + ":")
		w.table(fields)
	}
}

func (w *writer) schema(name string, schema node) {
	w.paragraph("### " + name)
	w.paragraph(escaped(schema.get("description").text()))
	fields := w.fields(schema)
	if len(fields) == 0 {
		w.paragraph("Type: " + w.typeOf(schema) + ".")
		return
	}
	w.table(fields)
}

type field struct {
	name     string
	schema   node
	required bool
}

// fields returns the fields of an object with those of the schemas that it extends. A field that
// is described twice, as a constant type is, stands where it came first with what came last.
func (w *writer) fields(schema node) (list []field) {
	add := func(f field) {
		for i := range list {
			if list[i].name == f.name {
				f.required = f.required || list[i].required
				list[i] = f
				return
			}
		}
		list = append(list, f)
	}
	schema = w.resolve(schema)
	for _, extended := range schema.get("allOf").items() {
		for _, f := range w.fields(extended) {
			add(f)
		}
	}
	required := map[string]bool{}
	for _, name := range schema.get("required").items() {
		required[name.text()] = true
	}
	for _, m := range schema.get("properties").members() {
		add(field{m.name, m.value, required[m.name]})
	}
	for i := range list {
		list[i].required = list[i].required || required[list[i].name]
	}
	return list
}

// table writes the fields of an object. Those of an object within it follow with a longer name.
func (w *writer) table(fields []field) {
	w.text.WriteString("| field | type | |\n|---|---|---|\n")
	w.rows("", fields)
	w.text.WriteString("\n")
}

func (w *writer) rows(prefix string, fields []field) {
	for _, f := range fields {
		name := "`" + prefix + f.name + "`"
		if f.required {
			name += " *"
		}
		description := f.schema.get("description").line() + defaultOf(f.schema)
		fmt.Fprintf(&w.text, "| %s | %s | %s |\n", name, cell(w.typeOf(f.schema)), cell(description))
		inner, innerPrefix := f.schema, prefix+f.name+"."
		if f.schema.get("type").text() == "array" {
			inner, innerPrefix = f.schema.get("items"), prefix+f.name+"[]."
		}
		if schemaName(inner) == "" {
			w.rows(innerPrefix, w.fields(inner))
		}
	}
}

func defaultOf(schema node) string {
	if value := schema.get("default").text(); value != "" {
		return " (" + value + " by default)"
	}
	return ""
}

// typeOf returns the type of a schema in words.
func (w *writer) typeOf(schema node) string {
	if name := schemaName(schema); name == "ErrorCode" {
		return link("Errors")
	} else if name != "" {
		return link(name)
	}
	var words []string
	switch {
	case schema.get("const").yaml != nil:
		return "`" + schema.get("const").text() + "`"
	case schema.get("enum").yaml != nil:
		for _, value := range schema.get("enum").items() {
			words = append(words, "`"+value.text()+"`")
		}
		return strings.Join(words, ", ")
	case schema.get("anyOf").yaml != nil, schema.get("oneOf").yaml != nil:
		for _, one := range append(schema.get("anyOf").items(), schema.get("oneOf").items()...) {
			words = append(words, w.typeOf(one))
		}
		return strings.Join(words, " or ")
	case schema.get("type").text() == "array":
		return "list of " + w.typeOf(schema.get("items"))
	case schema.get("format").text() == "date-time":
		return "time"
	}
	kind := schema.get("type").text()
	if kind == "" {
		kind = "object"
	}
	if values := schema.get("additionalProperties"); kind == "object" && len(values.members()) > 0 {
		return "object of " + w.typeOf(values)
	}
	return kind
}

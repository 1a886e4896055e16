package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/api.md is what the description of the API gives, and its links lead to its headings.
func TestReferenceIsFresh(t *testing.T) {
	want, err := reference("../" + source)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../" + target)
	if err != nil || string(got) != want {
		t.Errorf("docs/api.md is not what the description gives: go run ./apidoc (%v)", err)
	}
	var anchors []string
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(want, -1) {
		_, anchor, _ := strings.Cut(strings.TrimSuffix(link(heading[1]), ")"), "(#")
		anchors = append(anchors, anchor)
	}
	for _, anchor := range regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(want, -1) {
		if !slices.Contains(anchors, anchor[1]) {
			t.Errorf("there is no heading %q", anchor[1])
		}
	}
	if len(anchors) < 50 {
		t.Errorf("only %d headings", len(anchors))
	}
}

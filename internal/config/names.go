package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
)

// reserved matches the names that are surely meant for this program.
var reserved = regexp.MustCompile(`^(PZ|PZBRIDGE|ENDPOINT_[0-9]+|OUTBOX|RETRY|ROUTING)_`)

// readElsewhere are the reserved names that the bridge itself does not read: the commands and
// docker-compose.yml do, and the n8n of docs/recipes.md. They may stand in one .env with the
// others.
var readElsewhere = []string{"PZBRIDGE_URL", "PZBRIDGE_PORT", "PZBRIDGE_DOMAIN", "PZBRIDGE_SECRET"}

// maxSlips is how many letters may be wrong, missing or too many in a name that is still one of
// ours misspelt.
const maxSlips = 2

// misspelt says whether a variable that nothing reads was meant for this program, and for which of
// its variables; that is empty if no name is near. Reserved names always were. Any other name was
// only if it is near one of ours: what a platform sets, and what other programs on the machine
// read, is not this program's business.
func misspelt(name, value string, known []string) (meant string, isOurs bool) {
	if slices.Contains(readElsewhere, name) || setByPlatform(name, value) {
		return "", false
	}
	meant = nearest(name, slices.Concat(known, readElsewhere))
	return meant, meant != "" || reserved.MatchString(name)
}

var (
	// serviceName matches the names that Kubernetes gives each container for each service: a
	// service "pz" makes PZ_SERVICE_HOST.
	serviceName = regexp.MustCompile(`_SERVICE_(HOST|PORT|PORT_[A-Z0-9_]+)$`)
	// portName matches those that Kubernetes and Docker's links give for each port.
	portName = regexp.MustCompile(`_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|START|END)(_[A-Z]+)?)?)$`)
	// portValue matches the value of their name_PORT.
	portValue = regexp.MustCompile(`^(tcp|udp|sctp)://`)
	// linkName matches the environment of a linked container, which Docker passes on.
	linkName = regexp.MustCompile(`^[A-Z0-9]+(_[0-9]+)?_ENV_`)
)

// setByPlatform says whether Kubernetes or Docker makes such a variable of the name of another
// program, which can be anything.
func setByPlatform(name, value string) bool {
	return serviceName.MatchString(name) || portName.MatchString(name) || linkName.MatchString(name) ||
		strings.HasSuffix(name, "_PORT") && portValue.MatchString(value) ||
		strings.HasSuffix(name, "_NAME") && strings.HasPrefix(value, "/") // Docker's: /this container/that one
}

var (
	digits     = regexp.MustCompile(`[0-9]+`)
	notLetters = regexp.MustCompile(`[_0-9]`)
)

// nearest gives the name of ours of which another is a misspelling; empty if there is none. An
// endpoint's number stands in it as it does in the other.
func nearest(name string, known []string) string {
	number, _ := strconv.Atoi(digits.FindString(name)) // none is 0
	meant, least := "", maxSlips+1
	for _, ours := range known {
		if rest, ok := strings.CutPrefix(ours, endpointPrefix(0)); ok {
			ours = endpointPrefix(number) + rest
		}
		if slips := levenshtein.ComputeDistance(name, ours); slips < least && !hasOtherWord(name, ours) {
			meant, least = ours, slips
		}
	}
	return meant
}

// hasOtherWord says whether two names differ by a whole short word, as NPM_TOKEN and API_TOKEN or
// MAIL_TO and CALL_TO do: two letters make another word of such a one, and of a word of three
// letters a single one does. Its letters in another order are a slip all the same. Where an
// underscore or a number is missing or too many, every letter has to be right: PGPASSWORD is
// PostgreSQL's.
func hasOtherWord(name, ours string) bool {
	theirWords, ourWords := strings.Split(name, "_"), strings.Split(ours, "_")
	if len(theirWords) != len(ourWords) {
		return notLetters.ReplaceAllString(name, "") != notLetters.ReplaceAllString(ours, "")
	}
	for i, our := range ourWords {
		their := theirWords[i]
		if our == their || len(our) > 4 || slices.Equal(sortedLetters(our), sortedLetters(their)) {
			continue
		}
		if len(our) <= 3 && len(their) == len(our) || levenshtein.ComputeDistance(our, their) > 1 {
			return true
		}
	}
	return false
}

func sortedLetters(word string) []byte {
	letters := []byte(word)
	slices.Sort(letters)
	return letters
}

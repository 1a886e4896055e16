package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
)

// reserved matches the names that are certainly meant for this program.
var reserved = regexp.MustCompile(`^(PZ|PZBRIDGE|ENDPOINT_[0-9]+|OUTBOX|RETRY|ROUTING|RECORDINGS)_`)

// readElsewhere lists reserved names that the bridge itself does not read. The commands,
// docker-compose.yml and the n8n workflow docs/n8n.json read them, possibly from the same .env.
var readElsewhere = []string{"PZBRIDGE_URL", "PZBRIDGE_PORT", "PZBRIDGE_DOMAIN", "PZBRIDGE_SECRET", "PZBRIDGE_TOKEN"}

// maxTypos is the maximum edit distance between one of our names and a misspelling of it.
const maxTypos = 2

// misspelt reports whether an unknown variable is meant for this program (isOurs), and which of its
// variables is meant ("" if no name is near). A reserved name is always meant for this program, any
// other only if it is near one of ours: platforms and other programs on the machine have variables
// of their own, which must not stop the start.
func misspelt(name, value string, known []string) (meant string, isOurs bool) {
	if slices.Contains(readElsewhere, name) || setByPlatform(name, value) {
		return "", false
	}
	meant = nearest(name, slices.Concat(known, readElsewhere))
	return meant, meant != "" || reserved.MatchString(name)
}

var (
	// serviceName matches the variables that Kubernetes sets in each container for each service:
	// the service "pz" gives PZ_SERVICE_HOST.
	serviceName = regexp.MustCompile(`_SERVICE_(HOST|PORT|PORT_[A-Z0-9_]+)$`)
	// portName matches the variables that Kubernetes and Docker links set for each port.
	portName = regexp.MustCompile(`_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|START|END)(_[A-Z]+)?)?)$`)
	// portValue matches the value of <name>_PORT that they set.
	portValue = regexp.MustCompile(`^(tcp|udp|sctp)://`)
	// linkName matches the variables of a linked container that Docker passes on.
	linkName = regexp.MustCompile(`^[A-Z0-9]+(_[0-9]+)?_ENV_`)
)

// setByPlatform reports whether Kubernetes or Docker derives such a variable from the name of
// another service or container. That name can be anything, so the variable may look like ours.
func setByPlatform(name, value string) bool {
	return serviceName.MatchString(name) || portName.MatchString(name) || linkName.MatchString(name) ||
		strings.HasSuffix(name, "_PORT") && portValue.MatchString(value) ||
		// The value that a Docker link sets is /<this container>/<the other>.
		strings.HasSuffix(name, "_NAME") && strings.HasPrefix(value, "/")
}

var (
	digits     = regexp.MustCompile(`[0-9]+`)
	notLetters = regexp.MustCompile(`[_0-9]`)
)

// nearest returns the known name that a name misspells, or "" if there is none. For an endpoint's
// variable it has the same number as name, or 0 if name has none.
func nearest(name string, known []string) string {
	number, _ := strconv.Atoi(digits.FindString(name)) // 0 without digits
	meant, minDistance := "", maxTypos+1
	for _, ours := range known {
		if rest, ok := strings.CutPrefix(ours, endpointPrefix(0)); ok {
			ours = endpointPrefix(number) + rest
		}
		if d := levenshtein.ComputeDistance(name, ours); d < minDistance && !hasOtherWord(name, ours) {
			meant, minDistance = ours, d
		}
	}
	return meant
}

// hasOtherWord reports whether two names differ in a whole short word, as NPM_TOKEN and API_TOKEN
// or MAIL_TO and CALL_TO do. For a word of ours with at most four letters, an edit distance above 1
// makes another word, and with at most three letters the replacement of a single one does; the same
// letters in another order are a typo. If the names have different numbers of words (an underscore
// is missing or extra), every letter must be equal: PGPASSWORD belongs to PostgreSQL.
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

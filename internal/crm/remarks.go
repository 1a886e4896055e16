package crm

// What a CRM made of a call, for people: see store.Step. The values behind the words are the IDs
// that the CRM has for its things.
const (
	RemarkShown       = "card opened for the user"
	RemarkHidden      = "card closed for the user"
	RemarkUser        = "entered for the user"
	RemarkResponsible = "responsible user"
	RemarkNobody      = "nobody is responsible"
	RemarkNoClient    = "no client was made"
	RemarkUnknown     = "no client has the number"
	RemarkActivity    = "entered as the activity"
	RemarkFile        = "recording as the file"
)

// Responsible returns the remark on whose a client is, "" for nobody's.
func Responsible(owner string) (words, value string) {
	if owner == "" {
		return RemarkNobody, ""
	}
	return RemarkResponsible, owner
}

// RemarkEntity returns the words for a kind of client, which is the CRM's word for it in capitals,
// and "" for none that is known. IsNew means that the CRM has made the client for the call.
func RemarkEntity(kind string, isNew bool) string {
	words := remarkEntities[kind]
	if isNew {
		return words[1]
	}
	return words[0]
}

var remarkEntities = map[string][2]string{
	"LEAD":    {"lead", "new lead"},
	"CONTACT": {"contact", "new contact"},
	"COMPANY": {"company", "new company"},
	"DEAL":    {"deal", "new deal"},
}

// Remarks returns the words of all remarks. The pages have them in each language.
func Remarks() []string {
	list := []string{
		RemarkShown, RemarkHidden, RemarkUser, RemarkResponsible, RemarkNobody, RemarkNoClient, RemarkUnknown,
		RemarkActivity, RemarkFile,
	}
	for _, words := range remarkEntities {
		list = append(list, words[:]...)
	}
	return list
}

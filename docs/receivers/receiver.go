// Command receiver takes the webhooks of pzbridge, without a library: it verifies the signature,
// stores each event once as a file in a folder, and answers where a call should go.
//
//	WEBHOOK_SECRET=whsec_… INBOX=inbox ADDRESS=127.0.0.1:9000 go run receiver.go
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	inbox := os.Getenv("INBOX")
	if err := os.MkdirAll(inbox, 0o700); err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:              os.Getenv("ADDRESS"),
		Handler:           receiver(os.Getenv("WEBHOOK_SECRET"), inbox),
		ReadHeaderTimeout: 10 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}

func receiver(secret, inbox string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil || !verify(secret, r.Header, body) {
			http.Error(w, "wrong signature", http.StatusUnauthorized)
			return
		}
		var event struct {
			ID, Type string
			Data     struct {
				ClientNumber string `json:"client_number"`
			}
		}
		if err := json.Unmarshal(body, &event); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if event.Type == "call.transfer_requested" { // a person waits: answer at once
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]string{"transfer_to": manager(event.Data.ClientNumber)})
			return
		}
		// Something else does the work with these files. One that is there already has come before.
		if err := store(inbox, event.ID, body); err != nil && !errors.Is(err, fs.ErrExist) {
			log.Print(err)
			http.Error(w, "it cannot be stored", http.StatusInternalServerError) // it comes again
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// manager returns the extension that gets a client's call; an empty one declines.
func manager(client string) string {
	return map[string]string{"+73430112233": "101"}[client]
}

// store writes an event under its ID, and fails with fs.ErrExist if it is there already. It gets
// its name when it is whole.
func store(inbox, id string, body []byte) error {
	part, err := os.CreateTemp(inbox, ".part-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(part.Name()) }()
	_, writeErr := part.Write(body)
	if err := errors.Join(writeErr, part.Sync(), part.Close()); err != nil {
		return err
	}
	return os.Link(part.Name(), filepath.Join(inbox, filepath.Base(id)+".json"))
}

// verify reports whether a webhook was signed with the secret, within the last five minutes.
func verify(secret string, h http.Header, body []byte) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return false
	}
	sent, err := strconv.ParseInt(h.Get("webhook-timestamp"), 10, 64)
	if err != nil || time.Since(time.Unix(sent, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", h.Get("webhook-id"), h.Get("webhook-timestamp"), body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for _, got := range strings.Fields(h.Get("webhook-signature")) {
		if hmac.Equal([]byte(got), []byte(want)) {
			return true
		}
	}
	return false
}

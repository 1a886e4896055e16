package recordings

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"regexp"
	"time"
)

// kind is the form of a recording.
type kind struct {
	extension string // without the dot
	mediaType string
}

var (
	mp3   = kind{"mp3", "audio/mpeg"}
	wav   = kind{"wav", "audio/wav"}
	ogg   = kind{"ogg", "audio/ogg"}
	kinds = []kind{mp3, wav, ogg}
)

// plainExtension is an ending that a file may keep.
var plainExtension = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

// headSize is how much of a file tells its form.
const headSize = 512

// kindOf returns the form of a file by its beginning, or by the ending of its name.
func kindOf(head []byte, extension string) kind {
	switch {
	case len(head) >= 12 && string(head[:4]) == "RIFF" && string(head[8:12]) == "WAVE":
		return wav
	case bytes.HasPrefix(head, []byte("ID3")), len(head) > 1 && head[0] == 0xff && head[1]&0xe0 == 0xe0:
		return mp3
	case bytes.HasPrefix(head, []byte("OggS")):
		return ogg
	case plainExtension.MatchString(extension):
		return kind{extension, mediaTypeOf(extension)}
	}
	return kind{"bin", mediaTypeOf("bin")}
}

// mediaTypeOf returns the media type of the files with an ending.
func mediaTypeOf(extension string) string {
	for _, k := range kinds {
		if k.extension == extension {
			return k.mediaType
		}
	}
	return "application/octet-stream"
}

// isPage reports whether a file begins as a page for people: a server that wants a password often
// answers so, with the status 200.
func isPage(head []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(head, "\uFEFF \t\r\n"), []byte("<"))
}

// wavSize returns the size of a file that its head tells; 0 if it tells none. Some programs fill it
// in at the end.
func wavSize(head []byte) int64 {
	const unknown = 1<<32 - 1
	if kindOf(head, "") != wav {
		return 0
	}
	size := binary.LittleEndian.Uint32(head[4:8])
	if size == 0 || size == unknown {
		return 0
	}
	return int64(size) + 8
}

// convertTime bounds a conversion. One hour of speech takes some ten seconds.
const convertTime = 5 * time.Minute

// convert writes a file as mp3. The program reads and writes pipes alone: a file that is a list of
// other files leads it nowhere.
func convert(ctx context.Context, program string, from *os.File, to io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, convertTime)
	defer cancel()
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-nostdin", "-hide_banner", "-v", "error",
		"-protocol_whitelist", "pipe", "-i", "pipe:0", "-vn", "-f", "mp3", "pipe:1")
	cmd.Stdin, cmd.Stdout, cmd.WaitDelay = from, to, time.Second
	return cmd.Run()
}

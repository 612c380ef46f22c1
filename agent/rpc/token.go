package rpc

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
)

// maxToken is far above the length of any token that was given out.
const maxToken = 2048

// pageToken says after what a list goes on. Nothing is kept for it: a client that
// makes up its own only gets another page.
type pageToken struct {
	Question string `json:"q"` // what was asked, by question
	ID       string `json:"i"` // the item to go on after, or within
	Severity int    `json:"s,omitempty"`
	// Within is set inside a container: the process that comes next and, of that
	// one, the thread after which to go on.
	Within *within `json:"w,omitempty"`
}

type within struct {
	PID   int    `json:"p"`
	Start uint64 `json:"s"`
	TID   int    `json:"t,omitempty"`
}

// open reads the token that sealed wrote for the same question; an empty one is
// the begin.
func (t *pageToken) open(token, question string) error {
	if token == "" {
		return nil
	}
	if err := opened("page_token", token, t); err != nil {
		return err
	}
	if t.Question != question {
		return otherQuestion("page_token")
	}
	return nil
}

func (t pageToken) sealed(question string) string {
	t.Question = question
	return sealed(t)
}

// watchToken says after which change a watch goes on; a zero position starts with
// a snapshot.
type watchToken struct {
	Question string `json:"q"`
	BootID   string `json:"b,omitempty"`
	Epoch    string `json:"e,omitempty"`
	Sequence uint64 `json:"n,omitempty"`
}

func (t watchToken) position() agent.Position {
	return agent.Position{BootID: t.BootID, Epoch: t.Epoch, Sequence: t.Sequence}
}

// question is short for a call and all that its answer depends on. A token is
// bound to it: the answer to another question cannot be gone on with.
func question(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// sealed is the token as clients see it.
func sealed(token any) string {
	bytes, _ := json.Marshal(token) // of strings and numbers: cannot fail
	return base64.RawURLEncoding.EncodeToString(bytes)
}

// opened reads what sealed wrote.
func opened(field, sealed string, token any) error {
	if len(sealed) <= maxToken {
		if bytes, err := base64.RawURLEncoding.DecodeString(sealed); err == nil && json.Unmarshal(bytes, token) == nil {
			return nil
		}
	}
	return status.Errorf(codes.InvalidArgument, "%s: this is no token of this agent", field)
}

func otherQuestion(field string) error {
	return status.Errorf(codes.InvalidArgument, "%s: the token belongs to another request; give the same filter and view as before, or no token", field)
}

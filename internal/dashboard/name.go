package dashboard

import "pzbridge/internal/telephony"

// EventName returns what the English pages call a type of event.
func EventName(t telephony.EventType) string { return wordsOf[0][string(t)] }

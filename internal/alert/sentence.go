package alert

import (
	"fmt"
	"strings"

	"pzbridge/internal/advice"
	"pzbridge/internal/telephony"
)

// sentences are what an administrator reads: when something is wrong, and when it is over. The
// first may have a place for what is known about it.
var sentences = map[telephony.EventType]struct{ english, russian, overEnglish, overRussian string }{
	telephony.EventAlertDisconnected: {
		"The phone system has been disconnected for a minute: %s.",
		"Связи с АТС нет уже минуту: %s.",
		"The phone system is connected again.",
		"Связь с АТС восстановлена.",
	},
	telephony.EventAlertEndpointFailing: {
		"%s does not take its webhooks: %s. They wait, and go when it takes them again.",
		"%s не принимает веб-хуки: %s. Они ждут и уйдут, когда CRM снова начнёт их принимать.",
		"%s takes its webhooks again.",
		"%s снова принимает веб-хуки.",
	},
	telephony.EventAlertDeliveryDead: {
		"%s: events that it has not got and that are not tried again: %d. See why on the dashboard, " +
			"and send them again.",
		"%s: события, которые она не получила и которые больше не отправляются: %d. Посмотрите на странице " +
			"моста почему и отправьте их ещё раз.",
		"%s has no events left that were given up.",
		"%s: недоставленных событий, которые больше не отправляются, не осталось.",
	},
	telephony.EventAlertOutboxFull: {
		"The outbox is %d %% full: see which CRM does not take its events, or raise OUTBOX_MAX_BYTES.",
		"Хранилище заполнено на %d %%: посмотрите, какая CRM не принимает события, или увеличьте OUTBOX_MAX_BYTES.",
		"The outbox has room again.",
		"В хранилище снова есть место.",
	},
	telephony.EventAlertCommandsRefused: {
		"Calls or SMS of a CRM that CALL_RATE, CALL_FROM or CALL_TO have refused: %d. " +
			"See who asked for them in the log.",
		"Отклонено звонков или SMS от CRM: %d (CALL_RATE, CALL_FROM, CALL_TO): посмотрите в журнале, кто их запросил.",
		"No call or SMS of a CRM has been refused for an hour.",
		"Уже час ни один звонок и ни одно SMS от CRM не отклонены.",
	},
}

// event is the event that tells of an alert.
func (n *notice) event(russian bool) telephony.Event {
	return telephony.Event{
		Type:      n.kind,
		Endpoint:  n.endpoint,
		Text:      n.sentence(russian),
		Recovered: n.recovered,
	}
}

func (n *notice) sentence(russian bool) string {
	s := sentences[n.kind]
	format := s.english
	switch {
	case n.recovered && russian:
		format = s.overRussian
	case n.recovered:
		format = s.overEnglish
	case russian:
		format = s.russian
	}
	if n.recovered {
		if n.endpoint == "" {
			return format
		}
		return fmt.Sprintf(format, n.endpoint)
	}
	switch n.kind {
	case telephony.EventAlertDisconnected:
		return fmt.Sprintf(format, n.why(russian))
	case telephony.EventAlertEndpointFailing:
		return fmt.Sprintf(format, n.endpoint, n.why(russian))
	case telephony.EventAlertDeliveryDead:
		return fmt.Sprintf(format, n.endpoint, n.level)
	case telephony.EventAlertOutboxFull:
		return fmt.Sprintf(format, n.percent)
	}
	return fmt.Sprintf(format, n.level)
}

// why is the reason in words, without the stop that the sentence adds.
func (n *notice) why(russian bool) string {
	text := advice.EnglishText(n.text, n.cause)
	if russian {
		text = advice.RussianText(n.text, n.cause)
	}
	if text == "" {
		text = "–"
	}
	return strings.TrimSuffix(telephony.BriefText(text), ".")
}

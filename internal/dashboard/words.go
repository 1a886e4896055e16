package dashboard

import (
	"net/http"

	"golang.org/x/text/language"
)

// words are the texts of one language, by their English.
type words map[string]string

var (
	languages = language.NewMatcher([]language.Tag{language.English, language.Russian})
	byTag     = []words{english(), russian}
)

// wordsFor picks the language by Accept-Language; English unless Russian is wanted.
func wordsFor(r *http.Request) words {
	_, i := language.MatchStrings(languages, r.Header.Get("Accept-Language"))
	return byTag[i]
}

// english says each text as it is, but for the names of things.
func english() words {
	w := words{}
	for text := range russian {
		w[text] = text
	}
	for name, text := range map[string]string{
		"lang":                    "en",
		"call.transfer_requested": "asks where to go",
		"call.incoming":           "rings", "call.incoming_answered": "picked up", "call.outgoing": "rings the client",
		"call.outgoing_answered": "the client picked up", "call.completed": "over", "sms.sent": "SMS", "sms.status": "SMS status", "pz.event": "other event",
	} {
		w[name] = text
	}
	return w
}

var russian = words{
	"lang":    "ru",
	"Sign in": "Войти", "Sign out": "Выйти", "Sign in again.": "Войдите ещё раз.",
	"The operator's token (API_TOKEN)":                                        "Токен оператора (API_TOKEN)",
	"That is not the token of API_TOKEN.":                                     "Это не токен из API_TOKEN.",
	"Too many attempts. Wait a few seconds.":                                  "Слишком много попыток. Подождите несколько секунд.",
	"This bridge has no API_TOKEN. Set one to use this page, and restart it.": "У этого моста нет API_TOKEN. Задайте его и перезапустите мост, чтобы пользоваться этой страницей.",
	"Phone system": "АТС",
	"connected":    "соединение есть", "disconnected": "соединения нет", "connecting": "соединяется", "disabled": "отключено",
	"since": "с", "dials again at": "новая попытка в", "last closed with code": "последний раз закрыто с кодом",
	"Pause the connection": "Приостановить соединение", "Resume the connection": "Возобновить соединение",
	"Outbox": "Хранилище", "events are stored": "события сохраняются", "in use": "занято", "events cannot be stored": "события не сохраняются",
	"ok": "в порядке", "failing": "не принимает", "paused": "просила подождать",
	"Delivered": "Доставлено", "Given up": "Не доставлено", "Waiting": "Ждут", "Oldest waiting": "Ждёт дольше всех", "Response time": "Время ответа",
	"Last error": "Последняя ошибка", "next attempt at": "следующая попытка в", "Send a test": "Отправить проверку",
	"The last hour": "Последний час", "events received": "событий получено", "webhooks taken": "веб-хуков принято", "attempts failed": "попыток не удалось",
	"each bar is a minute, the highest": "столбик — минута, самый высокий —",
	"Latest calls":                      "Последние звонки", "There has been no call yet.": "Звонков ещё не было.",
	"Call": "Звонок", "Back": "Назад", "Webhooks": "Веб-хуки", "Request": "Запрос", "Response": "Ответ", "Attempts": "Попытки", "Attempt": "Попытка",
	"Redeliver": "Отправить ещё раз", "took": "заняла", "declined": "отказ", "no answer": "нет ответа",
	"transferred": "переведён", "not redirected": "без переадресации",
	"pending": "ждёт", "delivered": "доставлено", "expired": "устарело", "dead": "не доставлено", "No attempt was made.": "Попыток не было.",
	"Test of": "Проверка", "It was taken.": "Принято.", "It was not taken.": "Не принято.", "That did not work.": "Не получилось.",
	"Timeline": "Ход звонка", "live": "обновляется", "not live: reload the page": "не обновляется: перезагрузите страницу",
	"Skip to the content":     "Перейти к содержанию",
	"call.transfer_requested": "спрашивает, куда переадресовать",
	"call.incoming":           "звонит", "call.incoming_answered": "менеджер ответил", "call.outgoing": "звонит клиенту",
	"call.outgoing_answered": "клиент ответил", "call.completed": "завершён", "sms.sent": "SMS", "sms.status": "статус SMS", "pz.event": "другое событие",
}

package dashboard

import (
	"fmt"
	"net/http"
	"time"

	"pzbridge/internal/advice"
	"pzbridge/internal/telephony"

	"golang.org/x/text/language"
)

// words maps each English text to its text in one language.
type words map[string]string

var (
	languages = language.NewMatcher([]language.Tag{language.English, language.Russian})
	wordsOf   = []words{english(), russian} // in the order of languages
)

// short formats a duration in one unit.
func (t words) short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f %s", d.Seconds()*1000, t["ms"])
	case d < time.Second:
		return fmt.Sprintf("%d %s", d.Milliseconds(), t["ms"])
	case d < time.Minute:
		return fmt.Sprintf("%.1f %s", d.Seconds(), t["s"])
	case d < time.Hour:
		return fmt.Sprintf("%d %s", int(d.Minutes()), t["min"])
	case d < 48*time.Hour:
		return fmt.Sprintf("%d %s", int(d.Hours()), t["h"])
	}
	return fmt.Sprintf("%d %s", int(d.Hours()/24), t["d"])
}

// explain returns an error, and what to do about it, in the page's language.
func (t words) explain(err error) string {
	if t["lang"] == "ru" {
		return advice.Russian(err)
	}
	return advice.English(err)
}

// say is explain for a text that was kept with its cause.
func (t words) say(text string, c telephony.Cause) string {
	if t["lang"] == "ru" {
		return advice.RussianText(text, c)
	}
	return advice.EnglishText(text, c)
}

// wordsFor chooses the language by Accept-Language: Russian if it is preferred, else English.
func wordsFor(r *http.Request) words {
	_, i := language.MatchStrings(languages, r.Header.Get("Accept-Language"))
	return wordsOf[i]
}

// english maps each text to itself, except the keys that are identifiers.
func english() words {
	w := words{}
	for text := range russian {
		w[text] = text
	}
	for name, text := range map[string]string{
		"lang":                    "en",
		"reads":                   "reads its events itself",
		"call.transfer_requested": "asks where to go",
		"call.incoming":           "rings",
		"call.incoming_answered":  "picked up",
		"call.outgoing":           "rings the client",
		"call.outgoing_answered":  "the client picked up",
		"call.completed":          "over",
		"sms.sent":                "SMS",
		"sms.status":              "SMS status",
		"pz.event":                "other event",
	} {
		w[name] = text
	}
	return w
}

const (
	noToken = "This bridge has no API_TOKEN. Set one to use this page, and start it anew with it " +
		"(docker compose up -d)."
	notSignedOut = "only this browser is signed out, since that cannot be stored"
	badSwitch    = "the form does not say whether to switch the connection on or off"
)

var russian = words{
	"lang":                                   "ru",
	"Sign in":                                "Войти",
	"Sign out":                               "Выйти",
	"Sign in again.":                         "Войдите ещё раз.",
	"The operator's token (API_TOKEN)":       "Токен оператора (API_TOKEN)",
	"That is not the token of API_TOKEN.":    "Это не токен из API_TOKEN.",
	"Too many attempts. Wait a few seconds.": "Слишком много попыток. Подождите несколько секунд.",
	noToken: "У этого моста нет API_TOKEN. Задайте его и запустите мост заново (docker compose up -d), " +
		"чтобы пользоваться этой страницей.",
	"Phone system":                      "АТС",
	"connected":                         "соединение есть",
	"disconnected":                      "соединения нет",
	"connecting":                        "подключается",
	"disabled":                          "отключено",
	"since":                             "с",
	"dials again at":                    "новая попытка в",
	"last closed with code":             "последний раз закрыто с кодом",
	"connection closed with code":       "соединение закрыто с кодом",
	"Pause the connection":              "Приостановить соединение",
	"Resume the connection":             "Возобновить соединение",
	"Outbox":                            "Хранилище",
	"events are stored":                 "события сохраняются",
	"in use":                            "занято",
	"events cannot be stored":           "события не сохраняются",
	"needs you now":                     "нужно ваше вмешательство",
	"ok":                                "в порядке",
	"failing":                           "не принимает",
	"paused":                            "просила подождать",
	"reads":                             "читает события сама",
	"Last read":                         "Читала в последний раз",
	"never":                             "ни разу",
	"Not read yet":                      "Ещё не прочитано",
	"Since the start at":                "С запуска в",
	"As of":                             "На момент",
	"Sent again":                        "Отправлено ещё раз",
	"Waits to be sent again":            "Ждёт повторной отправки",
	"Delivered":                         "Доставлено",
	"Given up":                          "Не доставлено",
	"Waiting":                           "Ждут",
	"Oldest waiting":                    "Ждёт дольше всех",
	"Response time":                     "Время ответа",
	"Last error":                        "Последняя ошибка",
	"next attempt at":                   "следующая попытка в",
	"Send a test":                       "Отправить тестовое событие",
	"The last hour":                     "Последний час",
	"Events received":                   "Получено событий",
	"Webhooks taken":                    "Принято веб-хуков",
	"Attempts failed":                   "Неудачных попыток",
	"each bar is a minute, the highest": "столбик — минута, самый высокий —",
	"Latest calls":                      "Последние звонки",
	"There has been no call yet.":       "Звонков ещё не было.",
	"Call":                              "Звонок",
	"Back":                              "Назад",
	"Webhooks":                          "Веб-хуки",
	"Request":                           "Запрос",
	"Response":                          "Ответ",
	"Attempts":                          "Попытки",
	"Attempt":                           "Попытка",
	"Redeliver":                         "Отправить ещё раз",
	"took":                              "заняла",
	"declined":                          "отказ",
	"no answer":                         "нет ответа",
	"transferred":                       "переведён",
	"not redirected":                    "без переадресации",
	"pending":                           "ждёт",
	"delivered":                         "доставлено",
	"expired":                           "устарело",
	"dead":                              "не доставлено",
	"No attempt was made.":              "Попыток не было.",
	"Test of":                           "Проверка",
	"It was taken.":                     "Принято.",
	"It was not taken.":                 "Не принято.",
	"That did not work.":                "Не получилось.",
	notSignedOut:                        "вышел только этот браузер, так как это нельзя сохранить",
	badSwitch:                           "форма не говорит, включить соединение или отключить",
	"The request is too long to be shown whole.": "Запрос слишком длинный, чтобы показать его целиком.",
	"From the beginning":                         "С начала",
	"Later events":                               "Дальнейшие события",
	"Timeline":                                   "Ход звонка",
	"live":                                       "обновляется",
	"not live: reload the page":                  "не обновляется: перезагрузите страницу",
	"Skip to the content":                        "Перейти к содержимому",
	"ms":                                         "мс",
	"s":                                          "с",
	"min":                                        "мин",
	"h":                                          "ч",
	"d":                                          "д",
	"MiB":                                        "МиБ",
	"times are in":                               "время —",
	"call.transfer_requested":                    "спрашивает, куда переадресовать",
	"call.incoming":                              "звонит",
	"call.incoming_answered":                     "менеджер ответил",
	"call.outgoing":                              "звонит клиенту",
	"call.outgoing_answered":                     "клиент ответил",
	"call.completed":                             "завершён",
	"sms.sent":                                   "SMS",
	"sms.status":                                 "статус SMS",
	"pz.event":                                   "другое событие",
}

package dashboard

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/outbox/store"

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

// translate returns an error's text in the page's language. Unknown phrases stay in English.
func (t words) translate(text string) string {
	if t["lang"] == "ru" {
		return russianPhrases.Replace(text)
	}
	return text
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

const noToken = "This bridge has no API_TOKEN. Set one to use this page, and start it anew with it " +
	"(docker compose up -d)."

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

// russianPhrases translates the phrases of errors. Texts of the network and of CRMs stay unchanged.
var russianPhrases = strings.NewReplacer(
	store.ErrFileGone.Error(),
	"файл хранилища удалён, перемещён или заменён при работающем мосте: до перезапуска скачайте копию "+
		"(GET /v1/backup) и поставьте её на место командой pzbridge restore, иначе всё, что ждёт доставки, пропадёт",
	store.ErrDamaged.Error(),
	"страница файла хранилища повреждена: остановите мост и восстановите резервную копию или уберите файл, чтобы "+
		"начать с пустого",
	clock.ErrWrong.Error(), "часы этой машины неверны",
	"connection closed with code ", "соединение закрыто с кодом ",
	"the server ended the connection", "сервер завершил соединение",
	"the server is going away", "сервер выключается",
	"the connection broke off", "соединение оборвалось",
	"the server met an error of its own", "на сервере произошла ошибка",
	"the server is restarting", "сервер перезапускается",
	"the server could not check its licence key", "сервер не смог проверить свой лицензионный ключ",
	"the server's licence key is invalid: ask the vendor of Prostie Zvonki",
	"лицензионный ключ сервера недействителен: обратитесь к разработчику «Простых Звонков»",
	"the server's licence key has expired: renew it with the vendor of Prostie Zvonki",
	"срок лицензионного ключа сервера истёк: продлите его у разработчика «Простых Звонков»",
	"the server's licence key is not for this kind of PBX connector",
	"лицензионный ключ сервера — не для этого вида коннектора к АТС",
	"the server's licence key is not for this version of the PBX connector",
	"лицензионный ключ сервера — не для этой версии коннектора к АТС",
	"the server has no licence for this CRM: set PZ_CLIENT_TYPE to the type that the licence names",
	"у сервера нет лицензии на эту CRM: укажите в PZ_CLIENT_TYPE тип из лицензии",
	"too many users are connected to the server", "к серверу подключено слишком много пользователей",
	"the password is wrong: set PZ_PASSWORD to the server's", "пароль неверен: укажите в PZ_PASSWORD пароль сервера",
	"another client connected with the same GUID and took this one's place: stop it, or give one of the two "+
		"another PZ_CLIENT_GUID",
	"другая программа подключилась с тем же GUID и заняла место этой: остановите её или дайте одной из двух "+
		"другой PZ_CLIENT_GUID",
	"the server refused the handshake with HTTP 403: check PZ_PASSWORD, and that PZ_URL is a Prostie Zvonki server",
	"сервер отказал в подключении (HTTP 403): проверьте PZ_PASSWORD и то, что по адресу PZ_URL — сервер "+
		"«Простых Звонков»",
	"the server answered the handshake with HTTP ", "сервер ответил на подключение HTTP ",
	": check that PZ_URL is a Prostie Zvonki server", ": проверьте, что по адресу PZ_URL — сервер «Простых Звонков»",
	"the server has been silent for ", "сервер молчит уже ",
	": the connection counts as dead", ": соединение считается потерянным",
	"connect: connection refused", "в соединении отказано",
	"no such host", "такого имени нет",
	"no answer within ", "нет ответа за ",
	"only this browser is signed out, since that cannot be stored: ",
	"вышел только этот браузер, так как это нельзя сохранить: ",
	"the outbox is full: ", "хранилище заполнено: ",
	" of it are in use, ", " занято, ",
	" are allowed (OUTBOX_MAX_BYTES); it holds events that a CRM has not taken yet",
	" разрешено (OUTBOX_MAX_BYTES); в нём события, которые CRM ещё не приняла",
	"no space left on device", "на диске нет места",
	"it took the question without an answer, and has no token to answer later",
	"вопрос принят без ответа, а токена, чтобы ответить позже, нет",
	"its answer does not count, and it has no token to answer later: ",
	"ответ не засчитан, а токена, чтобы ответить позже, нет: ",
	"the operator has not allowed commands to go to this number (CALL_TO)",
	"на этот номер звонить не разрешено (CALL_TO)",
	"too many commands with this token were refused, so it can give none for ten minutes",
	"слишком много команд с этим токеном отклонено: десять минут они не принимаются",
	"not connected to the Prostie Zvonki server", "нет соединения с сервером «Простых Звонков»",
	"no answer from the Prostie Zvonki server in time: the command may have been carried out",
	"сервер «Простых Звонков» не ответил вовремя: команда, возможно, выполнена",
	"the Prostie Zvonki server refused: ", "сервер «Простых Звонков» отказал: ",
	"no event of this call is known: OUTBOX_RETENTION may have removed them",
	"о таком звонке ничего не известно: возможно, его события уже удалены (OUTBOX_RETENTION)",
	"there is no such delivery: OUTBOX_RETENTION may have removed it",
	"такой доставки нет: возможно, она уже удалена (OUTBOX_RETENTION)",
	"there is no endpoint of that name", "CRM с таким именем нет",
	"the endpoint has no URL: it reads its events", "у этой CRM нет URL: она читает события сама",
)

package advice

import "pzbridge/internal/telephony"

// entries has one entry for each code.
var entries = map[telephony.Code]entry{
	// The outbox.
	telephony.CodeFull: {
		" (OUTBOX_MAX_BYTES)",
		"хранилище заполнено: в нём события, которые CRM ещё не приняла" +
			"[; занято {1}, разрешено {2}] (OUTBOX_MAX_BYTES)",
	},
	telephony.CodeDatabase: {
		": check that it runs, accepts changes and has room on its disk, and that OUTBOX_URL is right",
		"база данных хранилища недоступна[: {1}]. Проверьте, работает ли она, принимает ли изменения, " +
			"есть ли место на её диске и верен ли её адрес (OUTBOX_URL)",
	},
	telephony.CodeNoPerson: {
		": give the whole number of a person, such as +7 343 011-22-33; an extension is none",
		"это не телефонный номер: укажите номер человека целиком, например +7 343 011-22-33; " +
			"внутренний номер не подходит",
	},
	telephony.CodeUnindexed: {
		": try again in some minutes",
		"звонки, сохранённые прежней версией, ещё индексируются по номерам: повторите через несколько минут",
	},
	telephony.CodeNoRedelivery: {
		russian: "такой повторной отправки нет",
	},
	telephony.CodeNoDelivery: {
		": OUTBOX_RETENTION may have removed it",
		"такой доставки нет: возможно, она уже удалена (OUTBOX_RETENTION)",
	},
	telephony.CodeNoCall: {
		": OUTBOX_RETENTION may have removed them",
		"о таком звонке ничего не известно: возможно, его события уже удалены (OUTBOX_RETENTION)",
	},
	telephony.CodeBadCursor: {"", "это не курсор из этого списка"},
	telephony.CodeChanged:   {"", "значение за это время изменилось"},
	telephony.CodeTooLong:   {"", "значение слишком длинное, чтобы его сохранить"},
	telephony.CodeBadState:  {"", "такого состояния нет"},
	telephony.CodeBadRecord: {"", "запись о нём в хранилище повреждена"},
	telephony.CodeDamaged: {
		": stop the bridge and restore a backup, or move the file away to start with an empty one",
		"страница файла хранилища повреждена[ ({1})]: остановите мост и восстановите резервную копию " +
			"или уберите файл, чтобы начать с пустого",
	},
	telephony.CodeFileGone: {
		": take GET /v1/backup before you restart it, and put that in place with pzbridge restore, " +
			"or all that waits is lost",
		"файл хранилища удалён, перемещён или заменён при работающем мосте: до перезапуска скачайте копию " +
			"(GET /v1/backup) и поставьте её на место командой pzbridge restore, " +
			"иначе всё, что ждёт доставки, пропадёт",
	},
	telephony.CodePruned: {
		"; OUTBOX_RETENTION is how long they stay",
		"события после этого курсора удалены: они слишком старые (OUTBOX_RETENTION) или хранилище было почти " +
			"заполнено; либо восстановлена резервная копия[; самые старые из оставшихся идут после «{1}»]",
	},
	telephony.CodeNoEndpoint: {"", "у этого моста нет CRM с таким именем[: «{1}»]"},
	telephony.CodeNoURL:      {"", "у этой CRM нет URL: она читает события сама[: «{1}»]"},
	telephony.CodeFileInUse: {
		"",
		"файл открыт другой программой: с одним файлом хранилища может работать только один мост",
	},
	telephony.CodeBridgeRuns: {
		"; stop the bridge first",
		"файл открыт другой программой: сначала остановите мост",
	},
	telephony.CodeNotOutbox: {
		": restore it from a backup, or move it away to start with an empty one",
		"файл — не хранилище или повреждён[ ({1})]: восстановите его из резервной копии или уберите, " +
			"чтобы начать с пустого",
	},
	telephony.CodeBadBackup: {
		": take another backup",
		"файл — не хранилище или повреждён: возьмите другую резервную копию",
	},
	telephony.CodeNewerFile: {
		": use that version again, or a backup from before the upgrade",
		"файл — от более новой версии pzbridge[ (его формат — {1}, эта версия читает до {2})]: " +
			"вернитесь к той версии или возьмите резервную копию, сделанную до обновления",
	},
	telephony.CodeNewerTables: {
		": start that version",
		"таблицы в базе данных создала более новая версия pzbridge[ (их версия — {1}, эта программа знает {2})]: " +
			"запустите ту версию",
	},
	telephony.CodeLinkToNothing: {": remove the link", "это ссылка на файл, которого нет: удалите ссылку"},
	telephony.CodeNoBackup: {
		"; make room in {1} and beside the outbox, or name another folder in BACKUP_DIR; " +
			"without BACKUP_DIR no copies are made",
		"не удалось записать копию хранилища: освободите место в {1} и рядом с хранилищем или укажите другую папку " +
			"в BACKUP_DIR; без BACKUP_DIR копии не делаются",
	},
	telephony.CodeMoved: {
		": set OUTBOX_URL to that database, or take the move back with pzbridge copy -abort",
		"содержимое файла перенесено в базу данных[ ({1})]: укажите её в OUTBOX_URL " +
			"или отмените перенос командой pzbridge copy -abort",
	},
	telephony.CodeMovedElsewhere: {
		": name that database",
		"содержимое файла переносится в другую базу данных[ ({1})]: укажите её",
	},
	telephony.CodeNotMoved: {
		": there is nothing to take back",
		"файл никуда не перенесён: отменять нечего",
	},
	telephony.CodeHalfCopied: {
		": finish it with pzbridge copy, or take it back with pzbridge copy -abort",
		"файл[ {1}] перенесён в базу данных ещё не настолько, чтобы мост мог работать: завершите перенос командой " +
			"pzbridge copy или отмените его командой pzbridge copy -abort",
	},
	telephony.CodeTakenBack: {
		": unset OUTBOX_URL to go on with the file, or copy it once more with pzbridge copy; " +
			"if taking it back was broken off, repeat pzbridge copy -abort",
		"перенос файла[ {1}] в базу данных отменён: уберите OUTBOX_URL, чтобы работать с файлом, " +
			"или перенесите его снова командой pzbridge copy; если отмена прервалась, повторите pzbridge copy -abort",
	},
	telephony.CodeStillCopied: {
		": try again in some minutes; if pzbridge copy was broken off, run it again",
		"более старые события ещё переносятся из файла хранилища: повторите через несколько минут; " +
			"если команда pzbridge copy прервалась, запустите её снова",
	},
	telephony.CodeNotEmpty: {
		": take an empty database, or another OUTBOX_SCHEMA",
		"в базе данных уже есть события: возьмите пустую базу или другую схему (OUTBOX_SCHEMA)",
	},
	telephony.CodeOtherCopy: {
		": finish that with pzbridge copy, take it back with pzbridge copy -abort, or take another OUTBOX_SCHEMA",
		"в базу данных переносится другой файл[: {1}]: завершите тот перенос командой pzbridge copy, " +
			"отмените его командой pzbridge copy -abort или возьмите другую схему (OUTBOX_SCHEMA)",
	},
	telephony.CodeBridgeOnDatabase: {
		": stop it first",
		"с базой данных работает мост[: {1}]: сначала остановите его",
	},
	telephony.CodeDelivered: {
		": the file would deliver that again, so go on with the database",
		"после переноса мосты с этой базой данных уже доставили или сохранили что-то новое: " +
			"с файлом это ушло бы в CRM ещё раз, поэтому работайте дальше с базой данных",
	},
	telephony.CodeNoRightToWrite: {
		": give user {1} the right to write in {2}",
		"нет доступа: дайте пользователю {1} право записи в {2}",
	},
	telephony.CodeNoRightToRead: {
		": give user {1} the right to read {2}",
		"нет доступа: дайте пользователю {1} право читать {2}",
	},
	telephony.CodeNoRightToFile: {
		": give user {1} the right to read and write it",
		"нет доступа: дайте пользователю {1} право читать и менять файл",
	},
	telephony.CodeClockWrong: {
		"; set it, by NTP if you can",
		"часы этой машины неверны[: они показывают {1}], а эта версия вышла позже; поставьте их, лучше по NTP",
	},
	telephony.CodeDiskFull: {"", "на диске нет места"},

	// Commands, and answers to the question where a call goes.
	telephony.CodeNotConnected: {"", "нет соединения с сервером «Простых Звонков»"},
	telephony.CodeNotListening: {
		"",
		"хранилище заполнено или недоступно для записи, поэтому мост не читает от сервера «Простых Звонков»",
	},
	telephony.CodeNotSent: {"", "команду не удалось вовремя передать серверу «Простых Звонков»"},
	telephony.CodeNoAnswer: {
		"",
		"сервер «Простых Звонков» не ответил вовремя: команда, возможно, выполнена",
	},
	telephony.CodeRefused: {"", "сервер «Простых Звонков» отказал: {1} (код {2})"},
	telephony.CodeRefusedIdentity: {
		"",
		"сервер «Простых Звонков» отказал: ошибка авторизации (код {1})",
	},
	telephony.CodeRefusedUnexplained: {
		"",
		"сервер «Простых Звонков» отказал и не объяснил причину (код {1})",
	},
	telephony.CodeFromNotAllowed: {" (CALL_FROM)", "с этого номера звонить не разрешено (CALL_FROM)"},
	telephony.CodeToNotAllowed:   {" (CALL_TO)", "на этот номер звонить не разрешено (CALL_TO)"},
	telephony.CodeCommandRate: {
		": CALL_RATE is how many calls a minute it may start, and how many SMS it may send",
		"слишком много команд с этим токеном: CALL_RATE — сколько звонков в минуту он может начать " +
			"и сколько SMS послать",
	},
	telephony.CodeCommandsClosed: {
		"",
		"слишком много команд с этим токеном отклонено: десять минут они не принимаются",
	},
	telephony.CodeNeverAsked: {"", "этот звонок не спрашивал, куда его переадресовать"},
	telephony.CodeRouteClosed: {
		"",
		"вопрос, куда переадресовать звонок, закрыт: никто вовремя не назвал номер",
	},
	telephony.CodeNotKept:  {"", "ответ не удалось сохранить, поэтому звонок не переведён"},
	telephony.CodeCallOver: {"", "звонок завершён"},
	telephony.CodeDecided:  {"", "звонок уже переводится на {1}: первым был ответ {2}"},
	telephony.CodeNoReply:  {" (ROUTING_TIMEOUT)", "нет ответа за {1} (ROUTING_TIMEOUT)"},
	telephony.CodeNoReplyNoToken: {
		"",
		"вопрос принят без ответа, а токена, чтобы ответить позже, нет",
	},
	telephony.CodeBadReplyNoToken: {"", "ответ не засчитан, а токена, чтобы ответить позже, нет: {1}"},
	telephony.CodeNotAsked:        {"", "вопрос не задан: ждали ответа на {1} других"},

	// The connection to the exchange.
	telephony.CodeForbidden: {
		": check PZ_PASSWORD, and that PZ_URL is a Prostie Zvonki server",
		"сервер отказал в подключении (HTTP 403): проверьте PZ_PASSWORD и то, что по адресу PZ_URL — сервер " +
			"«Простых Звонков»",
	},
	telephony.CodeHandshake: {
		": check that PZ_URL is a Prostie Zvonki server",
		"сервер ответил на подключение HTTP {1}: проверьте, что по адресу PZ_URL — сервер «Простых Звонков»",
	},
	telephony.CodeNoServer: {
		": check that PZ_URL is a Prostie Zvonki server",
		"на подключение ответил не сервер «Простых Звонков» ({1}): проверьте PZ_URL",
	},
	telephony.CodeUntrusted: {
		": name its CA in PZ_TLS_CA_FILE or, if the certificate is really that server's, " +
			"set PZ_TLS_FINGERPRINT={1}",
		"сертификат сервера не вызывает доверия: укажите его центр сертификации в PZ_TLS_CA_FILE или, " +
			"если сертификат действительно этого сервера, задайте PZ_TLS_FINGERPRINT={1}",
	},
	telephony.CodeOtherCertificate: {
		" (PZ_TLS_FINGERPRINT)",
		"отпечаток сертификата сервера — {1}, а это не PZ_TLS_FINGERPRINT",
	},
	telephony.CodeOldTLS: {
		": an old connector needs PZ_TLS_FINGERPRINT and PZ_TLS_LEGACY=true",
		"нет общей с сервером версии TLS: старому коннектору нужны PZ_TLS_FINGERPRINT и PZ_TLS_LEGACY=true",
	},
	telephony.CodePerhapsTLS: {
		": if the server speaks TLS, use wss:// in PZ_URL",
		"{1} закрыл соединение при подключении: если сервер использует TLS, укажите wss:// в PZ_URL",
	},
	telephony.CodeUnidentified: {
		": check that PZ_URL is a Prostie Zvonki server",
		"сервер не ответил за {1} ни в base64, ни в XML: проверьте, что по адресу PZ_URL — сервер «Простых Звонков»",
	},
	telephony.CodeSilent:         {"", "сервер молчит уже {1}: соединение считается потерянным"},
	telephony.CodeEndlessMessage: {"", "сообщение сервера не закончилось за {1}: соединение считается потерянным"},
	telephony.CodeNotReading:     {"", "сервер ничего не принимает: соединение считается потерянным"},
	telephony.CodeSwitchedOff:    {"", "соединение отключено на этой странице или с помощью PUT /v1/connection"},
	telephony.CodeSpare: {
		": send the request to that bridge",
		"подключён другой мост, а этот ждёт как запасной: обращайтесь к подключённому",
	},
	telephony.CodeTakenOver: { // it has an advice of its own, since that of the server's close code does not fit
		"; this one connects again by itself when it can",
		"место этого моста на сервере занял другой мост; этот сам подключится снова, когда сможет",
	},
	telephony.CodeWatchLost: {
		": it starts again by itself, and takes part again",
		"мост не успел показать другим, что жив, и они могли забрать его работу: он запустится снова",
	},
	telephony.CodeBehind: {"", "тем временем события сохранил другой мост"},
	telephony.CodeSetBack: {
		"",
		"база данных потеряла последнее сохранённое, как при переключении на отставшую копию или " +
			"при восстановлении: новые события нумеруются дальше",
	},
	telephony.CodeSameName: {
		": give each bridge a name of its own in BRIDGE_NAME",
		"в этой базе данных работает другой мост с тем же именем[ ({1})]: задайте каждому мосту своё имя в BRIDGE_NAME",
	},
	telephony.CodeStopping:      {"", "мост останавливается"},
	telephony.CodeEnded:         {"", "сервер завершил соединение"},
	telephony.CodeGoingAway:     {"", "сервер выключается"},
	telephony.CodeEndedSilently: {"", "сервер завершил соединение, не назвав причины"},
	telephony.CodeBrokeOff:      {"", "соединение оборвалось"},
	telephony.CodeServerError:   {"", "на сервере произошла ошибка"},
	telephony.CodeRestarting:    {"", "сервер перезапускается"},
	telephony.CodeLicenceUnchecked: {
		"",
		"сервер не смог проверить свой лицензионный ключ",
	},
	telephony.CodeLicenceInvalid: {
		": ask the vendor of Prostie Zvonki",
		"лицензионный ключ сервера недействителен: обратитесь к разработчику «Простых Звонков»",
	},
	telephony.CodeLicenceExpired: {
		": renew it with the vendor of Prostie Zvonki",
		"срок лицензионного ключа сервера истёк: продлите его у разработчика «Простых Звонков»",
	},
	telephony.CodeLicenceKind: {"", "лицензионный ключ сервера — не для этого вида коннектора к АТС"},
	telephony.CodeLicenceVersion: {
		"",
		"лицензионный ключ сервера — не для этой версии коннектора к АТС",
	},
	telephony.CodeLicenceClient: {
		": set PZ_CLIENT_TYPE to the type that the licence names",
		"у сервера нет лицензии на эту CRM: укажите в PZ_CLIENT_TYPE тип из лицензии",
	},
	telephony.CodeTooManyUsers: {"", "к серверу подключено слишком много пользователей"},
	telephony.CodeWrongPassword: {
		": set PZ_PASSWORD to the server's",
		"пароль неверен: укажите в PZ_PASSWORD пароль сервера",
	},
	telephony.CodeSameGUID: {
		": stop it, or give one of the two another PZ_CLIENT_GUID",
		"другая программа подключилась с тем же GUID и заняла место этой: остановите её или дайте одной из двух " +
			"другой PZ_CLIENT_GUID",
	},
	telephony.CodeClosedUnknown:     {"", "сервер закрыл соединение с кодом {1}, которого нет в документации"},
	telephony.CodeConnectionRefused: {"", "в соединении отказано[ ({1})]"},
	telephony.CodeConnectionReset:   {"", "соединение сброшено"},
	telephony.CodeNoHost:            {"", "такого имени нет[: {1}]"},
	telephony.CodeTimeout:           {"", "время ожидания истекло"},

	// A CRM's response.
	telephony.CodeNoResponse:  {"", "нет ответа за {1}"},
	telephony.CodeBadRedirect: {"", "ответ перенаправляет по адресу, который нельзя разобрать"},
	telephony.CodeBadStatus:   {"", "у ответа код состояния {1}, а такого не бывает"},
	telephony.CodeBadURL:      {"", "URL этой CRM нельзя разобрать"},
	telephony.CodeCRMRefuses: {
		": compare the secret in the CRM with its SECRET, and both clocks",
		"HTTP {1}: сравните секрет в CRM с её SECRET и часы на обеих сторонах",
	},
	telephony.CodeCRMNoPath: {
		": the path in its URL is not the one that takes webhooks",
		"HTTP {1}: по этому пути в её URL веб-хуки не принимаются",
	},
	telephony.CodeCRMMoved: {
		": this is a redirect, which is not followed: set its URL to the final address",
		"HTTP {1}, перенаправление, а за ним мост не идёт: укажите в её URL конечный адрес",
	},
	telephony.CodeCRMKeyRefused: {
		": compare the key in the CRM's settings with its SECRET",
		"CRM не принимает ключ[: «{1}»]: сравните ключ в настройках CRM с её SECRET",
	},
	telephony.CodeCRMSays: {"", "CRM отвечает «{1}»"},
	telephony.CodeCRMWantsLine: {
		": set its DEFAULT_LINE to a number of the company",
		"CRM отвечает «{1}»: укажите номер компании в её DEFAULT_LINE",
	},
	telephony.CodePortalWebhook: {
		": it was removed, or the address in its URL is not whole; make an inbound webhook anew and set its URL",
		"портал не знает этого вебхука[: «{1}»]: он удалён, или адрес в URL неполный. " +
			"Создайте входящий вебхук заново и укажите его адрес в URL",
	},
	telephony.CodePortalScope: {
		": add the rights telephony, crm and user to the inbound webhook, or to the local application",
		"не хватает прав[: «{1}»]: добавьте входящему вебхуку или локальному приложению права telephony, crm и user",
	},
	telephony.CodePortalPlan: {
		": its plan has no REST interface (a commercial plan of Bitrix24 has, or the subscription to its Market), " +
			"or the user of the webhook lacks a right",
		"портал отказывает в доступе[: «{1}»]: на его тарифе нет REST (нужен коммерческий тариф Битрикс24 " +
			"или подписка на Маркет), или у владельца вебхука не хватает прав",
	},
	telephony.CodePortalInstall: {
		": open the address of this bridge and /hooks/bitrix24/NAME/install, with the name of the endpoint, " +
			"in a browser, and log in to the portal as an administrator",
		"локальное приложение не подключено, или портал его больше не признаёт[: «{1}»]: откройте в браузере адрес " +
			"этого моста и /hooks/bitrix24/ИМЯ/install, где ИМЯ — имя этой CRM, и войдите на портал как администратор",
	},
	telephony.CodePortalAdmin: {
		": log in to the portal as an administrator, and open the same address again",
		"подключить приложение должен администратор портала: войдите на портал администратором и откройте тот же " +
			"адрес ещё раз",
	},
	telephony.CodePortalOther: {
		": the address of the portal in the endpoint's URL has to be the one where the application was made",
		"ключи выданы другим порталом: адрес в URL этой CRM должен быть адресом того портала, где создано приложение",
	},
	telephony.CodePortalClient: {
		": set its CLIENT_ID and CLIENT_SECRET as the portal shows them on the page of the local application",
		"Битрикс24 не знает такого приложения[: «{1}»]: укажите CLIENT_ID и CLIENT_SECRET так, как их показывает " +
			"портал на странице локального приложения",
	},
	telephony.CodePortalOAuth: {
		": it is tried again; if it stays so, check that the bridge reaches the address in its OAUTH_URL",
		"сервер Битрикс24 не выдал новых ключей[: «{1}»]: попытка повторится. Если так и останется, проверьте, " +
			"доступен ли мосту адрес из OAUTH_URL",
	},
	telephony.CodePortalBusy: {"", "портал принимает два запроса в секунду, и другие ждут своей очереди"},
	telephony.CodeRecordingPlace: {
		": name that host or folder in RECORDINGS_FROM, if it is the right one",
		"записи оттуда забирать не разрешено: {1}. Если место верное, укажите его в RECORDINGS_FROM",
	},
	telephony.CodeRecordingLarge:  {"", "запись больше {1}"},
	telephony.CodeRecordingAbsent: {"", "такого файла нет: АТС ещё не записала его или уже удалила"},
	telephony.CodeRecordingGrows:  {"", "файл ещё записывается"},
	telephony.CodeRecordingPage: {
		": that server wants a name and a password, or the address is another",
		"вместо записи пришла веб-страница: серверу нужны имя и пароль, либо адрес другой",
	},
	telephony.CodeRecordingLogin: {
		": put them into RECORDINGS_MAP, such as ftp://pbx/=ftp://name:password@pbx/",
		"сервер записей не принимает имя или пароль: укажите их в RECORDINGS_MAP, " +
			"например ftp://pbx/=ftp://имя:пароль@pbx/",
	},
	telephony.CodePortalUpload: {"", "портал не назвал своего адреса, по которому отправить запись"},
	telephony.CodePortalAppOnly: {
		": ask the administrator of the portal, or use a portal that admits webhooks",
		"портал не разрешает вебхукам регистрировать звонки[: «{1}»]: обратитесь к администратору портала",
	},
	telephony.CodeCRMGone: {
		": it accepts no webhooks any more, and every delivery with this answer is dead: " +
			"set its URL to the new address",
		"HTTP {1}: веб-хуки она больше не принимает, и события с этим ответом не доставлены: " +
			"укажите в её URL новый адрес",
	},
	telephony.CodeCRMTooMany: {
		": it has had too many requests: set its RATE",
		"HTTP {1}: запросов слишком много: задайте её RATE",
	},
	telephony.CodeCRMStatus: {": its own log says why", "HTTP {1}: причина — в журнале самой CRM"},
}

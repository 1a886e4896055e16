-- What each listener has stored of late and what is removed already, by Engine.Forget or early: the
-- other listener may not have followed it yet, and must not take its own copy for another event.
CREATE TABLE removed (
	n     bigint   PRIMARY KEY,
	at    bigint   NOT NULL, -- as in table event, like the others
	slot  smallint NOT NULL,
	print uuid     NOT NULL
);
CREATE INDEX removed_at ON removed (at);

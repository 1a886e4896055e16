-- Events that one of two listeners has stored of late and that are removed already, by Engine.Forget
-- or early: the other listener may not have followed yet, and must not store its own copy.
CREATE TABLE removed (
	n     bigint   PRIMARY KEY,
	at    bigint   NOT NULL, -- as in table event, like the others
	slot  smallint NOT NULL,
	print uuid     NOT NULL
);
CREATE INDEX removed_at ON removed (at);

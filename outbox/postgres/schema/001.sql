-- The tables of an outbox. Times are Unix nanoseconds, of events milliseconds; the caller gives
-- them.
-- Names are kept in byte order (COLLATE "C"), whatever the database's own order is.

-- One row. It is locked from the number of an event until the commit, so numbers follow the order
-- of commits: whoever has read up to a number misses nothing below it.
CREATE TABLE head (
	one    boolean PRIMARY KEY DEFAULT true CHECK (one),
	last   bigint  NOT NULL DEFAULT 0, -- the number of the last event
	pruned bigint  NOT NULL DEFAULT 0, -- the highest number of a removed event
	used   bigint  NOT NULL DEFAULT 0, -- about how many bytes the events take
	-- The number of the last event that each of two listeners has stored: see Engine.AppendHeard.
	heard_1 bigint NOT NULL DEFAULT 0,
	heard_2 bigint NOT NULL DEFAULT 0,
	subscribed bigint NOT NULL DEFAULT 0, -- raised with each change of table subscription
	-- Raised by what makes deliveries due without storing an event, so that other processes look.
	touched bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO head DEFAULT VALUES;

CREATE TABLE setting (
	name  text COLLATE "C" PRIMARY KEY,
	value bytea NOT NULL -- empty for one that was removed
);

-- The processes that live. Each raises its counter again and again: see presence.go.
CREATE TABLE process (
	id      uuid PRIMARY KEY,
	bridge  text   NOT NULL, -- its name
	counter bigint NOT NULL DEFAULT 0,
	wants   text[] NOT NULL DEFAULT '{}' -- the leases that it has or waits for
) WITH (fillfactor = 10);

-- What one process has at a time: see lease.go. One whose owner does not live is free.
CREATE TABLE lease (
	name  text COLLATE "C" PRIMARY KEY,
	owner uuid, -- none: it was given up
	epoch bigint NOT NULL DEFAULT 0 -- raised each time that it is taken or given up
) WITH (fillfactor = 10);

-- What bridges have said of themselves.
CREATE TABLE bridge (
	name  text COLLATE "C" PRIMARY KEY,
	seen  bigint NOT NULL, -- when it announced itself last, in milliseconds by its own clock
	value jsonb  NOT NULL  -- an announcement: see bridges.go
) WITH (fillfactor = 50);

-- What the endpoints of each bridge get: an event is stored for those of all bridges.
CREATE TABLE subscription (
	bridge   text COLLATE "C" NOT NULL,
	endpoint text COLLATE "C" NOT NULL,
	value    jsonb NOT NULL, -- a store.Subscription
	PRIMARY KEY (bridge, endpoint)
);

CREATE TABLE endpoint (
	name       text COLLATE "C" PRIMARY KEY,
	id         smallint GENERATED ALWAYS AS IDENTITY UNIQUE,
	read_up_to bigint NOT NULL DEFAULT 0, -- of an endpoint that reads: the last event that it has read
	read_at    bigint NOT NULL DEFAULT 0  -- and when that was
);

CREATE TABLE event (
	n        bigint PRIMARY KEY,
	id       uuid   NOT NULL UNIQUE,
	at       bigint NOT NULL, -- when it was read, in milliseconds
	type     text COLLATE "C" NOT NULL,
	call     text COLLATE "C" NOT NULL, -- empty for none
	sequence bigint NOT NULL, -- within its call
	print    uuid   NOT NULL, -- equal for two events with the same content of the same call
	from_key text COLLATE "C" NOT NULL, -- of its numbers: see store.Rules.NumberKey
	to_key   text COLLATE "C" NOT NULL,
	size     integer NOT NULL, -- about how many bytes it takes, with its deliveries
	-- Of the listener that has stored it, where two read the same events: 1 or 2, negative for a
	-- replay; 0 for none.
	slot     smallint NOT NULL DEFAULT 0,
	body     bytea  NOT NULL
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE UNIQUE INDEX event_call ON event (call, sequence) WHERE call <> '';
CREATE INDEX event_print ON event (print) WHERE call = '';
CREATE INDEX event_from ON event (from_key, n) WHERE from_key <> '';
CREATE INDEX event_to ON event (to_key, n) WHERE to_key <> '';

-- The deliveries that are pending: this table stays small. A statement can use one index of it.
CREATE TABLE pending (
	n           bigint   NOT NULL,
	endpoint    smallint NOT NULL,
	due         bigint   NOT NULL, -- 0: at once; -1: held; -2: being asked
	attempts    integer  NOT NULL,
	step        smallint NOT NULL,
	failed_at   bigint   NOT NULL,
	next        bigint   NOT NULL,
	redelivered smallint NOT NULL,
	request     bigint   NOT NULL,
	expires     bigint   NOT NULL,
	put_off     boolean  NOT NULL,
	history     bytea, -- the last attempts
	PRIMARY KEY (n, endpoint)
) WITH (
	fillfactor = 60, -- the next event of a call changes the delivery before it, in the same page
	autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX pending_due ON pending (endpoint, due, n) WHERE due >= 0;
CREATE INDEX pending_expires ON pending (endpoint, expires, n) WHERE expires > 0 AND due >= 0;

-- The deliveries that have ended. Due is when.
CREATE TABLE ended (
	endpoint    smallint NOT NULL,
	n           bigint   NOT NULL,
	state       smallint NOT NULL,
	due         bigint   NOT NULL,
	attempts    integer  NOT NULL,
	step        smallint NOT NULL,
	failed_at   bigint   NOT NULL,
	next        bigint   NOT NULL,
	redelivered smallint NOT NULL,
	request     bigint   NOT NULL,
	expires     bigint   NOT NULL,
	history     bytea,
	PRIMARY KEY (endpoint, n)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX ended_failed ON ended (endpoint, state, n) WHERE state <> 1;

-- How many deliveries of an endpoint are in a state (0 to 3) is the sum of these rows: each
-- transaction adds its own, so that none waits for another. They are added up now and then.
CREATE TABLE tally (
	endpoint smallint NOT NULL,
	state    smallint NOT NULL,
	number   bigint   NOT NULL
);

CREATE TABLE route (
	call     text COLLATE "C" PRIMARY KEY,
	value    bytea  NOT NULL, -- a telephony.Route as JSON
	write_by bigint NOT NULL -- until when its Transfer is of use, which nobody writes yet; 0 for none
) WITH (fillfactor = 70);
CREATE INDEX route_unwritten ON route (write_by) WHERE write_by > 0;

-- The events that endpoints are being asked about.
CREATE TABLE question (
	n     bigint PRIMARY KEY,
	owner uuid NOT NULL -- the process that asks; if it does not live, another one may
);

-- What senders have kept for a call.
CREATE TABLE kept (
	call     text COLLATE "C" NOT NULL,
	endpoint smallint NOT NULL,
	version  bigint   NOT NULL,
	value    bytea    NOT NULL,
	PRIMARY KEY (call, endpoint)
);

CREATE TABLE note (
	endpoint smallint NOT NULL,
	name     text COLLATE "C" NOT NULL,
	version  bigint NOT NULL,
	until    bigint NOT NULL, -- 0 for ever
	value    bytea  NOT NULL,
	PRIMARY KEY (endpoint, name)
);

-- Who has brought idempotency keys.
CREATE TABLE bearer (
	name text COLLATE "C" PRIMARY KEY,
	size bigint NOT NULL DEFAULT 0 -- about how many bytes its keys take
) WITH (fillfactor = 10);

-- Idempotency keys.
CREATE TABLE claim (
	key     bytea    PRIMARY KEY,
	bearer  text COLLATE "C" NOT NULL,
	id      uuid     NOT NULL,
	request bytea    NOT NULL,
	status  integer  NOT NULL,
	answer  bytea    NOT NULL,
	at      bigint   NOT NULL, -- in milliseconds
	size    bigint   NOT NULL -- about how many bytes it takes
);
CREATE INDEX claim_age ON claim (bearer, at);

CREATE TABLE redelivery (
	number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	token  uuid   NOT NULL UNIQUE,
	value  json   NOT NULL -- a store.RedeliveryState
);

CREATE TABLE audit (
	number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	id     uuid   NOT NULL UNIQUE,
	value  json   NOT NULL -- a store.Audit
);

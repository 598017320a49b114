"""Tables of ``core.sqlite``; append-only: a released migration is never edited."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # Names and numbers of the agent itself: agent_epoch, conn_no.
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        # One row per store_id this file has had; the newest is in force (a rebase adds one).
        """CREATE TABLE store (
            no INTEGER PRIMARY KEY, store_id TEXT NOT NULL, born_ms INTEGER NOT NULL)""",
        # End of each append-only log: the streams of the outbox, and the journal.
        """CREATE TABLE log (
            name TEXT PRIMARY KEY, next_seq INTEGER NOT NULL, last_digest BLOB NOT NULL,
            acked_wm INTEGER NOT NULL, kept_bytes INTEGER NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE outbox (
            store_no INTEGER NOT NULL, stream TEXT NOT NULL, seq INTEGER NOT NULL,
            at_ms INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL,
            PRIMARY KEY (store_no, stream, seq)) WITHOUT ROWID""",
        "CREATE INDEX outbox_schema ON outbox (digest) WHERE stream = 'schema'",
        """CREATE TABLE segment (
            seq INTEGER PRIMARY KEY, file TEXT NOT NULL, digest BLOB NOT NULL,
            bytes INTEGER NOT NULL, t_min_ms INTEGER NOT NULL, t_max_ms INTEGER NOT NULL,
            points INTEGER NOT NULL)""",
        """CREATE TABLE journal (
            seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body BLOB NOT NULL)""",
        """CREATE TABLE snapshot (
            fact_seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body BLOB NOT NULL)""",
        """CREATE TABLE switch (
            switch_id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, closed INTEGER NOT NULL,
            body BLOB NOT NULL)""",
        "CREATE INDEX switch_open ON switch (switch_id) WHERE closed = 0",
        "CREATE INDEX switch_at ON switch (at_ms)",
        """CREATE TABLE lease (
            lease_id TEXT PRIMARY KEY, hub_epoch INTEGER NOT NULL, generation INTEGER NOT NULL,
            body BLOB NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE policy (
            one INTEGER PRIMARY KEY CHECK (one = 1), hub_epoch INTEGER NOT NULL,
            generation INTEGER NOT NULL, body BLOB NOT NULL)""",
        """CREATE TABLE meter_head (
            lease_id TEXT NOT NULL, attempt INTEGER NOT NULL, device_id TEXT NOT NULL,
            instance_id TEXT NOT NULL, closed INTEGER NOT NULL, at_ms INTEGER NOT NULL,
            body BLOB NOT NULL,
            PRIMARY KEY (lease_id, attempt, device_id, instance_id)) WITHOUT ROWID""",
        "CREATE TABLE node_mark (node_id TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        # The mode of a miner before it was put to sleep: what it wakes into after a restart.
        "CREATE TABLE asic_mode (device_id TEXT PRIMARY KEY, mode TEXT NOT NULL) WITHOUT ROWID",
        # One-off commands that were begun: noted before the write, so that none is done twice.
        """CREATE TABLE one_off (
            command_id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID""",
    ),
    (
        # Hash chain of the journal: each row's covers its body and the digest of the row before.
        "ALTER TABLE journal ADD COLUMN digest BLOB",
        # What every snapshot hashed to; stays when the snapshot itself is thinned out.
        """CREATE TABLE state_digest (
            fact_seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, digest BLOB NOT NULL)""",
        # The site by which rows from ``fact_seq`` on were decided; a row only when it changed.
        """CREATE TABLE site_file (
            fact_seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body BLOB NOT NULL)""",
    ),
)

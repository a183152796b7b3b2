"""The tables of context memory.

- ``texts`` holds what was remembered, as given after redaction, once per distinct content of a workspace.
- ``items`` are spans of a text: passages (every text is covered by them) and typed items (decisions, facts ...).
  Passages of one thread have consecutive ids within a block of ``BLOCK`` ids, so a passage's neighbours are found
  by arithmetic. Ids are never used again.
- ``words`` is the full-text index of the items. It keeps no text, only words that ``recall.words`` prepared, each with
  its workspace in front: the postings, counts and ranks of one workspace are its own.
"""

from __future__ import annotations

BLOCK = 256  #: ids a thread takes at a time; neighbours are looked for within a block

CONTEXT_TABLES = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE workspaces (workspace INTEGER PRIMARY KEY AUTOINCREMENT, salt TEXT NOT NULL, name TEXT NOT NULL,
    created_s REAL NOT NULL, n_passages INTEGER NOT NULL DEFAULT 0, n_typed INTEGER NOT NULL DEFAULT 0,
    last_number INTEGER NOT NULL DEFAULT 0,
    UNIQUE (salt, name));
CREATE TABLE threads (thread INTEGER PRIMARY KEY, workspace INTEGER NOT NULL, source TEXT,
    next_item INTEGER NOT NULL, last_at REAL NOT NULL);
CREATE INDEX threads_source ON threads (workspace, source);
CREATE TABLE texts (text INTEGER PRIMARY KEY AUTOINCREMENT, workspace INTEGER NOT NULL, number INTEGER NOT NULL,
    kind TEXT NOT NULL, role TEXT NOT NULL, speaker TEXT, source TEXT, at REAL NOT NULL, last_at REAL NOT NULL,
    created_s REAL NOT NULL, body TEXT NOT NULL, hash BLOB NOT NULL, count INTEGER NOT NULL DEFAULT 1,
    UNIQUE (workspace, hash));
CREATE INDEX texts_at ON texts (workspace, at);
CREATE INDEX texts_source ON texts (workspace, source);
CREATE TABLE items (item INTEGER PRIMARY KEY, workspace INTEGER NOT NULL, text INTEGER NOT NULL,
    kind TEXT NOT NULL, is_passage INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
    n_words INTEGER NOT NULL, at REAL NOT NULL, slot TEXT, value TEXT, status TEXT NOT NULL DEFAULT 'asserted',
    is_standing INTEGER NOT NULL DEFAULT 0,
    superseded_by INTEGER, superseded_at REAL, merged_into INTEGER, net_useful REAL NOT NULL DEFAULT 0,
    useful_s REAL NOT NULL DEFAULT 0, n_used INTEGER NOT NULL DEFAULT 0, used_s REAL NOT NULL DEFAULT 0,
    pinned_s REAL);
CREATE INDEX items_text ON items (text);
CREATE INDEX items_kind ON items (workspace, kind, at);
CREATE INDEX items_slot ON items (workspace, slot) WHERE slot IS NOT NULL;
CREATE INDEX items_superseded ON items (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX items_standing ON items (workspace, item) WHERE is_standing;
CREATE INDEX items_pinned ON items (workspace, pinned_s) WHERE pinned_s IS NOT NULL;
CREATE TABLE links (item INTEGER NOT NULL, relation TEXT NOT NULL, other INTEGER NOT NULL,
    workspace INTEGER NOT NULL, PRIMARY KEY (item, relation, other)) WITHOUT ROWID;
CREATE INDEX links_other ON links (other);
CREATE TABLE vectors (fingerprint TEXT NOT NULL, item INTEGER NOT NULL, workspace INTEGER NOT NULL,
    seq INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (fingerprint, item)) WITHOUT ROWID;
CREATE INDEX vectors_seq ON vectors (workspace, fingerprint, seq);
CREATE INDEX vectors_item ON vectors (item);
CREATE TABLE windows (workspace INTEGER NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL,
    item INTEGER NOT NULL, PRIMARY KEY (workspace, name, position)) WITHOUT ROWID;
CREATE INDEX windows_item ON windows (item);
CREATE TABLE plans (plan INTEGER PRIMARY KEY AUTOINCREMENT, workspace INTEGER NOT NULL, at REAL NOT NULL,
    changes TEXT NOT NULL, undone_s REAL);
CREATE TABLE audit (row INTEGER PRIMARY KEY AUTOINCREMENT, workspace INTEGER NOT NULL, at REAL NOT NULL,
    action TEXT NOT NULL, item INTEGER, detail TEXT NOT NULL);
CREATE INDEX audit_at ON audit (workspace, at);
CREATE VIRTUAL TABLE words USING fts5 (body, content='', tokenize='ascii');
CREATE VIRTUAL TABLE words_at USING fts5vocab (words, instance);
"""

#: ``unread``: texts that no extractor has read yet, from ``start`` on. ``found_by``: the extractor; NULL for rules.
#: ``untold``: items that were forgotten where nobody knew of the logs that may show them.
LATER_TABLES = """
CREATE TABLE unread (text INTEGER PRIMARY KEY, workspace INTEGER NOT NULL, start INTEGER NOT NULL DEFAULT 0,
    n_failed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX unread_workspace ON unread (workspace, n_failed, text DESC);
ALTER TABLE items ADD COLUMN found_by TEXT;
CREATE TABLE untold (workspace INTEGER NOT NULL, item INTEGER NOT NULL, PRIMARY KEY (workspace, item)) WITHOUT ROWID;
"""

"""The tables of episodic memory.

Episodes and what they did are all that is stored; patterns are made from them when they are asked for.
``episode_verdicts`` says how well advice served. ``episode_changes`` counts the changes of a workspace, so that every
process knows when to learn anew.
"""

from __future__ import annotations

EPISODE_TABLES = """
CREATE TABLE redaction_salt (value BLOB NOT NULL);
CREATE TABLE episodes (episode INTEGER PRIMARY KEY AUTOINCREMENT, workspace INTEGER NOT NULL, task TEXT NOT NULL,
    language TEXT NOT NULL, framework TEXT NOT NULL, domain TEXT NOT NULL, tags TEXT NOT NULL, state TEXT NOT NULL,
    started_s REAL NOT NULL, touched_s REAL NOT NULL, ended_s REAL, success INTEGER, result TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '', duration_ms REAL, quality REAL, score TEXT, redactions INTEGER NOT NULL DEFAULT 0,
    next_number INTEGER NOT NULL DEFAULT 1, run INTEGER NOT NULL DEFAULT 1);
CREATE INDEX episodes_state ON episodes (workspace, state, touched_s);
CREATE TABLE episode_events (episode INTEGER NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL,
    tool TEXT NOT NULL DEFAULT '', action TEXT NOT NULL DEFAULT '', ok INTEGER NOT NULL DEFAULT 1,
    observation TEXT NOT NULL DEFAULT '', parameters TEXT NOT NULL DEFAULT '{}', latency_ms REAL, tokens INTEGER,
    cut_chars INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (episode, number)) WITHOUT ROWID;
CREATE TABLE episode_verdicts (verdict INTEGER PRIMARY KEY AUTOINCREMENT, workspace INTEGER NOT NULL,
    pattern TEXT NOT NULL, at REAL NOT NULL, success INTEGER NOT NULL);
CREATE INDEX episode_verdicts_pattern ON episode_verdicts (workspace, pattern);
CREATE TABLE episode_changes (workspace INTEGER PRIMARY KEY, n INTEGER NOT NULL);
"""

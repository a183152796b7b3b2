"""KV between a store and a bucket that hosts share: what is published, what is fetched, what it may be called then."""

"""A small durable key-value database that speaks Redis's protocol (RESP2).

    python examples/kvstore --dir /var/lib/kv --port 6379

Strings with times to live, an append-only log with checksums, group commit: what has been
acknowledged is on the disk.  One idea a file, from the bottom up:

* resp.py: requests out of bytes, replies into bytes
* log.py: the log's format, and what is read of it after a crash
* disk.py: writing and syncing, by the ring, by threads of aiounify's, or under another event loop
* store.py: the keys, and how what was not written is taken back
* commit.py: group commit, the answer to a full or failing disk, the rewriting of the log
* commands.py: the commands
* server.py: connections and their limits
* __main__.py: the command line
"""

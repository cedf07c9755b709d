package trail

// readme goes into each export.
const readme = `An export of Pawl's audit trail.

records.jsonl      one record a line: "body" is what was hashed (base64, a protobuf pawl.v1.AuditRecord),
                   "hash" its leaf in the tree, "record" the same to read
records.csv        the same for people; it proves nothing
checkpoints.jsonl  every checkpoint, oldest first
checkpoint         the newest: the number of records, the root hash of the Merkle tree (RFC 6962) over
                   all of them, and the auditor's Ed25519 signature (https://c2sp.org/tlog-checkpoint)
auditor.pub        the keys that verify the signatures

To verify it, anywhere, with nothing but this folder and the pawl program:

    pawl audit verify FOLDER --key KEY

KEY is what "pawl audit key" prints on the machine of the installation, or a file that holds it. Get it by
another way than this folder: whoever could forge the records could put a key of his own beside them.

    pawl audit verify FOLDER --key KEY --since CHECKPOINT

proves as well that nothing was rewritten since the checkpoint of an earlier export, which you kept.
`

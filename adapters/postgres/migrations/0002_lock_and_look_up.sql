-- The beginning of the numbering transaction in one call: three statements, planned once for each session. Each has a
-- snapshot of its own, since the function is volatile and transactions read what is committed: the look-up sees what
-- was committed while the locks were waited for.
--
-- First the progress rows, locked in order of the partition; then the conversations are locked in order of their ids,
-- so that no two transactions wait for each other in a circle; then one row for each identity, in which partition is
-- null: its conversation, its sender's membership, its message or rejection.
CREATE FUNCTION lock_and_look_up(
    locked_log text, locked_partitions integer[], locked_conversations uuid[],
    identity_conversations uuid[], identity_senders uuid[], identity_names uuid[]
) RETURNS TABLE (
    partition integer, next_offset bigint, owner_epoch bigint,
    place bigint, last_seq bigint, members_version bigint, member boolean,
    seq bigint, "time" bigint, digest bytea, rejected_digest bytea, code text, words text
) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT o.partition, o.next_offset, o.owner_epoch,
               NULL::bigint, NULL::bigint, NULL::bigint, NULL::boolean,
               NULL::bigint, NULL::bigint, NULL::bytea, NULL::bytea, NULL::text, NULL::text
        FROM partition_offset o
        WHERE o.log_id = locked_log AND o.partition = ANY (locked_partitions)
        ORDER BY o.partition FOR UPDATE;
    PERFORM FROM conversations c WHERE c.conversation_id = ANY (locked_conversations)
        ORDER BY c.conversation_id FOR UPDATE;
    RETURN QUERY
        SELECT NULL::integer, NULL::bigint, NULL::bigint,
               k.n, c.last_seq, c.members_version, p.user_id IS NOT NULL,
               m.seq, m.time, m.digest, r.digest, r.code, r.message
        FROM unnest(identity_conversations, identity_senders, identity_names)
             WITH ORDINALITY AS k (conversation_id, sender_id, client_msg_id, n)
        LEFT JOIN conversations c ON c.conversation_id = k.conversation_id
        LEFT JOIN members p ON p.conversation_id = k.conversation_id AND p.user_id = k.sender_id
                           AND p.to_seq IS NULL
        LEFT JOIN messages m ON m.client_msg_id = k.client_msg_id AND m.sender_id = k.sender_id
                            AND m.conversation_id = k.conversation_id
        LEFT JOIN rejections r ON r.client_msg_id = k.client_msg_id AND r.sender_id = k.sender_id
                              AND r.conversation_id = k.conversation_id;
END $$;

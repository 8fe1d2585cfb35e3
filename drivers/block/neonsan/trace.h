/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of the NeonSAN driver: enough to follow one request from the
 * socket to its reply, and to see why it waits when it does.
 *
 * Numbers of operations and states are those of the netlink family
 * (Documentation/netlink/specs/neonsan.yaml); statuses are those of the wire
 * (Documentation/protocol.rst). Called from Rust through rust/kernel/trace.rs.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM neonsan

#if !defined(_NEONSAN_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _NEONSAN_TRACE_H

#include <linux/tracepoint.h>

#ifndef _NEONSAN_TRACE_NAMES
#define _NEONSAN_TRACE_NAMES
#define neonsan_show_op(op)			\
	__print_symbolic(op,			\
		{ 0, "read" },			\
		{ 1, "write" },			\
		{ 2, "flush" },			\
		{ 3, "discard" },		\
		{ 4, "write-zeroes" })

#define neonsan_show_session_state(state)	\
	__print_symbolic(state,			\
		{ 0, "opening" },		\
		{ 1, "live" },			\
		{ 2, "degraded" },		\
		{ 3, "recovering" },		\
		{ 4, "failed" },		\
		{ 5, "detaching" })

#define neonsan_show_connection_state(state)	\
	__print_symbolic(state,			\
		{ 0, "idle" },			\
		{ 1, "waiting" },		\
		{ 2, "connecting" },		\
		{ 3, "handshake" },		\
		{ 4, "live" },			\
		{ 5, "draining" })
#endif

/* A request was given to the socket of its connection. */
TRACE_EVENT(neonsan_request_sent,
	TP_PROTO(u32 device, u32 connection, u32 tag, u64 cookie, u32 op,
		 u64 offset, u32 length),
	TP_ARGS(device, connection, tag, cookie, op, offset, length),
	TP_STRUCT__entry(
		__field(u64, cookie)
		__field(u64, offset)
		__field(u32, device)
		__field(u32, connection)
		__field(u32, tag)
		__field(u32, op)
		__field(u32, length)
	),
	TP_fast_assign(
		__entry->cookie = cookie;
		__entry->offset = offset;
		__entry->device = device;
		__entry->connection = connection;
		__entry->tag = tag;
		__entry->op = op;
		__entry->length = length;
	),
	TP_printk("neonsan%u connection=%u tag=%u cookie=%#llx op=%s offset=%llu length=%u",
		  __entry->device, __entry->connection, __entry->tag,
		  __entry->cookie, neonsan_show_op(__entry->op),
		  __entry->offset, __entry->length)
);

/* The reply to a request was matched and read in full. */
TRACE_EVENT(neonsan_reply_received,
	TP_PROTO(u32 device, u32 connection, u32 tag, u64 cookie, u32 status,
		 u32 length),
	TP_ARGS(device, connection, tag, cookie, status, length),
	TP_STRUCT__entry(
		__field(u64, cookie)
		__field(u32, device)
		__field(u32, connection)
		__field(u32, tag)
		__field(u32, status)
		__field(u32, length)
	),
	TP_fast_assign(
		__entry->cookie = cookie;
		__entry->device = device;
		__entry->connection = connection;
		__entry->tag = tag;
		__entry->status = status;
		__entry->length = length;
	),
	TP_printk("neonsan%u connection=%u tag=%u cookie=%#llx status=%u length=%u",
		  __entry->device, __entry->connection, __entry->tag,
		  __entry->cookie, __entry->status, __entry->length)
);

/* A connection went from one state to another; cause may be empty. */
TRACE_EVENT(neonsan_connection_state,
	TP_PROTO(u32 device, u32 connection, u32 from, u32 to,
		 const char *cause, u32 cause_len),
	TP_ARGS(device, connection, from, to, cause, cause_len),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, connection)
		__field(u32, from)
		__field(u32, to)
		__string_len(cause, cause, cause_len)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->connection = connection;
		__entry->from = from;
		__entry->to = to;
		__assign_str(cause);
	),
	TP_printk("neonsan%u connection=%u %s -> %s cause=\"%s\"",
		  __entry->device, __entry->connection,
		  neonsan_show_connection_state(__entry->from),
		  neonsan_show_connection_state(__entry->to),
		  __get_str(cause))
);

/* A session went from one state to another; cause may be empty. */
TRACE_EVENT(neonsan_session_state,
	TP_PROTO(u32 device, u32 from, u32 to, u64 generation,
		 const char *cause, u32 cause_len),
	TP_ARGS(device, from, to, generation, cause, cause_len),
	TP_STRUCT__entry(
		__field(u64, generation)
		__field(u32, device)
		__field(u32, from)
		__field(u32, to)
		__string_len(cause, cause, cause_len)
	),
	TP_fast_assign(
		__entry->generation = generation;
		__entry->device = device;
		__entry->from = from;
		__entry->to = to;
		__assign_str(cause);
	),
	TP_printk("neonsan%u %s -> %s generation=%llu cause=\"%s\"",
		  __entry->device,
		  neonsan_show_session_state(__entry->from),
		  neonsan_show_session_state(__entry->to),
		  __entry->generation, __get_str(cause))
);

#endif /* _NEONSAN_TRACE_H */

/* This part must be outside protection. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>

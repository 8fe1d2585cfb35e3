/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A QEMU plugin that counts what a guest executes between two marks.
 *
 * A mark is an instruction that does nothing: `nopl disp32(%rax,%rax,1)` with the
 * displacement 0x4e530001 (begin) or 0x4e530002 (end). tools/bench emits them.
 *
 * Every translation block adds its number of instructions to a counter of its
 * own, found by its address. So the sum is the count, and the counters are an
 * exact profile. At each end mark one line goes to the file:
 *
 *	window NUMBER TOTAL KERNEL
 *
 * and, with profile=on, one line `ADDRESS COUNT` (hexadecimal, decimal) for each
 * address that was executed. Two programs at one address share a counter.
 *
 * Options: out=FILE, profile=on|off.
 */
#include "qemu-plugin-api.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

/* A power of two, far more than the blocks of a kernel that is in use. */
#define COUNTERS (1u << 20)
/* Where what finds no place is counted. */
#define OVERFLOW 0u

static uint64_t addresses[COUNTERS];
static struct qemu_plugin_scoreboard *counters;
static unsigned int used;
static unsigned int windows;
static bool open_window;
static bool profile = true;
static FILE *out;

/* Protects addresses and used: without icount each CPU is a thread, and translates what it runs. The
 * counters need no lock, each CPU has its own; a window that begins or ends on one CPU misses what
 * another does in that moment. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The index of the counter of an address. */
static unsigned int find_counter(uint64_t address)
{
	uint64_t hash = address * 0x9e3779b97f4a7c15ull;
	unsigned int at = (unsigned int)(hash >> 44);

	for (unsigned int i = 0; i < 64; i++, at = (at + 1) & (COUNTERS - 1)) {
		if (at == OVERFLOW)
			continue;
		if (addresses[at] == address)
			return at;
		if (addresses[at] == 0) {
			addresses[at] = address;
			used++;
			return at;
		}
	}
	return OVERFLOW;
}

static unsigned int counter_of(uint64_t address)
{
	unsigned int at;

	pthread_mutex_lock(&lock);
	at = find_counter(address);
	pthread_mutex_unlock(&lock);
	return at;
}

static void on_begin(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	for (int i = 0; i < qemu_plugin_num_vcpus(); i++)
		memset(qemu_plugin_scoreboard_find(counters, i), 0, COUNTERS * sizeof(uint64_t));
	open_window = true;
}

static void on_end(unsigned int vcpu, void *data)
{
	uint64_t total = 0, kernel = 0;
	int cpus = qemu_plugin_num_vcpus();

	(void)vcpu;
	(void)data;
	if (!open_window)
		return;
	open_window = false;
	for (unsigned int at = 0; at < COUNTERS; at++) {
		for (int i = 0; i < cpus; i++) {
			uint64_t n = ((uint64_t *)qemu_plugin_scoreboard_find(counters, i))[at];

			total += n;
			if (addresses[at] >> 63)
				kernel += n;
		}
	}
	fprintf(out, "window %u %" PRIu64 " %" PRIu64 "\n", windows++, total, kernel);
	for (unsigned int at = 0; profile && at < COUNTERS; at++) {
		uint64_t n = 0;

		for (int i = 0; i < cpus; i++)
			n += ((uint64_t *)qemu_plugin_scoreboard_find(counters, i))[at];
		if (n)
			fprintf(out, "%" PRIx64 " %" PRIu64 "\n", addresses[at], n);
	}
	fflush(out);
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	static const uint8_t begin[8] = { 0x0f, 0x1f, 0x84, 0x00, 0x01, 0x00, 0x53, 0x4e };
	static const uint8_t end[8] = { 0x0f, 0x1f, 0x84, 0x00, 0x02, 0x00, 0x53, 0x4e };
	size_t n = qemu_plugin_tb_n_insns(tb);
	qemu_plugin_u64 entry = { counters, counter_of(qemu_plugin_tb_vaddr(tb)) * sizeof(uint64_t) };

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_ADD_U64, entry, n);
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint8_t bytes[8];

		if (qemu_plugin_insn_size(insn) != sizeof(bytes))
			continue;
		qemu_plugin_insn_data(insn, bytes, sizeof(bytes));
		if (!memcmp(bytes, begin, sizeof(bytes)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_begin, QEMU_PLUGIN_CB_NO_REGS, NULL);
		else if (!memcmp(bytes, end, sizeof(bytes)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
	}
}

static void on_exit_of_machine(qemu_plugin_id_t id, void *data)
{
	(void)id;
	(void)data;
	fprintf(out, "done %u %u\n", windows, used);
	fclose(out);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
					   char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4)) {
			out = fopen(argv[i] + 4, "w");
		} else if (!strcmp(argv[i], "profile=off")) {
			profile = false;
		} else if (strcmp(argv[i], "profile=on")) {
			fprintf(stderr, "count: unknown option %s\n", argv[i]);
			return -1;
		}
	}
	if (!out) {
		fprintf(stderr, "count: out=FILE is missing, or cannot be written\n");
		return -1;
	}
	setvbuf(out, NULL, _IOFBF, 1 << 20);
	counters = qemu_plugin_scoreboard_new(COUNTERS * sizeof(uint64_t));
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	qemu_plugin_register_atexit_cb(id, on_exit_of_machine, NULL);
	return 0;
}

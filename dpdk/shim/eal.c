/* SPDX-License-Identifier: Apache-2.0
 *
 * EAL start, its log, threads and the clock. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/types.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mempool.h>
#include <rte_version.h>

#include "fv.h"

#if RTE_VERSION < RTE_VERSION_NUM(22, 11, 0, 0)
#error "DPDK 22.11 or newer is needed"
#endif

static fv_log_fn log_callback;

static ssize_t log_write(void *cookie, const char *text, size_t size)
{
	(void)cookie;
	log_callback((uint32_t)rte_log_cur_msg_loglevel(), text, size);
	return (ssize_t)size;
}

/* Sends DPDK's log to `callback` instead of stderr and syslog. Called once, before fv_eal_init. */
int fv_log_open(fv_log_fn callback)
{
	static const cookie_io_functions_t functions = { .write = log_write };
	FILE *stream;

	log_callback = callback;
	stream = fopencookie(NULL, "w", functions);
	if (stream == NULL)
		return -1;
	return rte_openlog_stream(stream);
}

int fv_eal_init(int argc, char **argv)
{
	return rte_eal_init(argc, argv);
}

int fv_errno(void)
{
	return rte_errno;
}

const char *fv_strerror(int code)
{
	return rte_strerror(code < 0 ? -code : code);
}

const char *fv_version(void)
{
	return rte_version();
}

int fv_thread_register(void)
{
	return rte_thread_register();
}

static void flush_own_cache(struct rte_mempool *pool, void *arg)
{
	(void)arg;
	rte_mempool_cache_flush(NULL, pool);
}

/* Buffers in this thread's caches go back first: nobody else could take them from there. */
void fv_thread_unregister(void)
{
	rte_mempool_walk(flush_own_cache, NULL);
	rte_thread_unregister();
}

int fv_lcore_id(void)
{
	unsigned int id = rte_lcore_id();

	return id == LCORE_ID_ANY ? -1 : (int)id;
}

uint64_t fv_cycles(void)
{
	return rte_get_tsc_cycles();
}

uint64_t fv_cycles_hz(void)
{
	return rte_get_tsc_hz();
}

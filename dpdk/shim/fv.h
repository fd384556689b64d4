/* SPDX-License-Identifier: Apache-2.0
 *
 * The flat C face of DPDK that the Rust side declares by hand in src/ffi.rs. Everything that is an
 * inline function, a macro, a bit field or a per-thread variable in DPDK's headers becomes a plain
 * function or a plain structure here; nothing else is in the shim. Keep both files in step.
 */
#ifndef FERROVIA_DPDK_SHIM_H
#define FERROVIA_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

struct rte_mbuf;
struct rte_mempool;

typedef void (*fv_log_fn)(uint32_t level, const char *text, size_t len);

/* eal.c */
int fv_log_open(fv_log_fn callback);
int fv_eal_init(int argc, char **argv);
int fv_errno(void);
const char *fv_strerror(int code);
const char *fv_version(void);
int fv_thread_register(void);
void fv_thread_unregister(void);
int fv_lcore_id(void);
uint64_t fv_cycles(void);
uint64_t fv_cycles_hz(void);

/* mbuf.c */
struct rte_mempool *fv_pool_create(const char *name, uint32_t count, uint32_t cache,
				   uint16_t data_room, int numa);
uint32_t fv_pool_available(const struct rte_mempool *pool);
struct rte_mbuf *fv_mbuf_alloc(struct rte_mempool *pool);
int fv_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, uint32_t count);
void fv_mbuf_free(struct rte_mbuf *mbuf);
void fv_mbuf_free_bulk(struct rte_mbuf **mbufs, uint32_t count);

/* port.c */
struct fv_port_info {
	char name[64];
	char driver[64];
	uint8_t mac[6];
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint16_t max_mtu;
	int32_t numa;
	uint32_t if_index;
};

struct fv_port_config {
	uint16_t rx_queues;
	uint16_t tx_queues;
	uint16_t ring_size;
	uint16_t mtu;
	uint8_t rx_interrupts;
};

struct fv_port_stats {
	uint64_t rx_packets, tx_packets;
	uint64_t rx_bytes, tx_bytes;
	uint64_t rx_missed, rx_errors, tx_errors, rx_no_buffer;
};

struct fv_port_link {
	uint32_t mbps; /* 0: not known */
	uint8_t up;
	uint8_t full_duplex;
};

int fv_device_probe(const char *devargs);
int fv_port_matching(const char *devargs, uint16_t *ids, uint32_t capacity);
int fv_port_info(uint16_t port, struct fv_port_info *info);
int fv_port_configure(uint16_t port, const struct fv_port_config *config, struct rte_mempool *pool);
int fv_port_start(uint16_t port);
int fv_port_stop(uint16_t port);
int fv_port_remove(uint16_t port);
int fv_port_promiscuous(uint16_t port, int on);
int fv_port_stats(uint16_t port, struct fv_port_stats *stats);
int fv_port_stats_reset(uint16_t port);
int fv_port_link(uint16_t port, struct fv_port_link *link);
int fv_port_mac(uint16_t port, uint8_t mac[6]);
int fv_port_mtu(uint16_t port, uint16_t *mtu);
int fv_rx_event_fd(uint16_t port, uint16_t queue);
int fv_rx_event_arm(uint16_t port, uint16_t queue, int on);
uint16_t fv_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count,
		     uint64_t *linearised, uint64_t *dropped);
uint16_t fv_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Mempools and mbufs. The Rust side reads and writes the first fields of an mbuf itself (its `Raw`
 * in src/mbuf.rs); the assertions below are what makes that right. */
#include <rte_mbuf.h>
#include <rte_mempool.h>

#include "fv.h"

#define AT(field, offset, type)                                                                     \
	_Static_assert(offsetof(struct rte_mbuf, field) == (offset), "mbuf layout: " #field);       \
	_Static_assert(sizeof(((struct rte_mbuf *)0)->field) == sizeof(type), "mbuf layout: " #field)

AT(buf_addr, 0, void *);
AT(data_off, 16, uint16_t);
AT(refcnt, 18, uint16_t);
AT(nb_segs, 20, uint16_t);
AT(port, 22, uint16_t);
AT(ol_flags, 24, uint64_t);
AT(packet_type, 32, uint32_t);
AT(pkt_len, 36, uint32_t);
AT(data_len, 40, uint16_t);
AT(vlan_tci, 42, uint16_t);
AT(vlan_tci_outer, 52, uint16_t);
AT(buf_len, 54, uint16_t);
AT(pool, 56, struct rte_mempool *);
_Static_assert(RTE_PKTMBUF_HEADROOM == 128, "the headroom that the Rust side counts on");

/* ring_mt_rts and not the default ring: where threads share a core (a laptop, a test machine), a
 * thread preempted in the middle of an enqueue does not make the others spin until it runs again. */
struct rte_mempool *fv_pool_create(const char *name, uint32_t count, uint32_t cache,
				   uint16_t data_room, int numa)
{
	return rte_pktmbuf_pool_create_by_ops(name, count, cache, 0,
					      (uint16_t)(data_room + RTE_PKTMBUF_HEADROOM), numa,
					      "ring_mt_rts");
}

uint32_t fv_pool_available(const struct rte_mempool *pool)
{
	return rte_mempool_avail_count(pool);
}

struct rte_mbuf *fv_mbuf_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

int fv_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, uint32_t count)
{
	return rte_pktmbuf_alloc_bulk(pool, mbufs, count);
}

void fv_mbuf_free(struct rte_mbuf *mbuf)
{
	rte_pktmbuf_free(mbuf);
}

void fv_mbuf_free_bulk(struct rte_mbuf **mbufs, uint32_t count)
{
	rte_pktmbuf_free_bulk(mbufs, count);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Ethernet devices: attach, configure, bursts, statistics. Every function returns 0 or a negative
 * errno, unless it says otherwise. */
#include <stdio.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "fv.h"


int fv_device_probe(const char *devargs)
{
	return rte_dev_probe(devargs);
}

/* The ports of a device that is attached already: how many there are, at most `capacity` written. */
int fv_port_matching(const char *devargs, uint16_t *ids, uint32_t capacity)
{
	struct rte_dev_iterator iterator;
	uint16_t port;
	int found = 0;

	RTE_ETH_FOREACH_MATCHING_DEV(port, devargs, &iterator) {
		if ((uint32_t)found < capacity)
			ids[found] = port;
		found++;
	}
	return found;
}

int fv_port_info(uint16_t port, struct fv_port_info *info)
{
	struct rte_eth_dev_info dev;
	char name[RTE_ETH_NAME_MAX_LEN] = "";
	struct rte_ether_addr mac;
	int ret;

	memset(info, 0, sizeof(*info));
	ret = rte_eth_dev_info_get(port, &dev);
	if (ret != 0)
		return ret;
	ret = rte_eth_dev_get_name_by_port(port, name);
	if (ret != 0)
		return ret;
	snprintf(info->name, sizeof(info->name), "%s", name);
	if (dev.driver_name != NULL)
		snprintf(info->driver, sizeof(info->driver), "%s", dev.driver_name);
	if (rte_eth_macaddr_get(port, &mac) == 0)
		memcpy(info->mac, mac.addr_bytes, sizeof(info->mac));
	info->max_rx_queues = dev.max_rx_queues;
	info->max_tx_queues = dev.max_tx_queues;
	info->max_mtu = dev.max_mtu;
	info->numa = rte_eth_dev_socket_id(port);
	info->if_index = dev.if_index;
	return 0;
}

/* The MTU to configure a device with. Some virtual drivers (af_packet of 22.11) name the size of a
 * plain Ethernet frame as their longest and then move whatever fits their buffers: they are given
 * what they accept. */
static uint16_t acceptable_mtu(const struct rte_eth_dev_info *dev, uint16_t mtu)
{
	uint32_t overhead = RTE_ETHER_HDR_LEN + RTE_ETHER_CRC_LEN;
	uint32_t most = mtu;

	if (dev->max_mtu != UINT16_MAX && dev->max_rx_pktlen > dev->max_mtu)
		overhead = dev->max_rx_pktlen - dev->max_mtu;
	if (dev->max_rx_pktlen > overhead && most > dev->max_rx_pktlen - overhead)
		most = dev->max_rx_pktlen - overhead;
	if (dev->max_mtu != 0 && most > dev->max_mtu)
		most = dev->max_mtu;
	if (most < dev->min_mtu)
		most = dev->min_mtu;
	return (uint16_t)most;
}

int fv_port_configure(uint16_t port, const struct fv_port_config *config, struct rte_mempool *pool)
{
	struct rte_eth_dev_info dev;
	struct rte_eth_conf conf;
	struct rte_eth_rxconf rxconf;
	struct rte_eth_txconf txconf;
	uint16_t rx_ring = config->ring_size, tx_ring = config->ring_size, queue;
	int ret, numa;

	ret = rte_eth_dev_info_get(port, &dev);
	if (ret != 0)
		return ret;
	memset(&conf, 0, sizeof(conf));
	conf.rxmode.mtu = acceptable_mtu(&dev, config->mtu);
	conf.intr_conf.rxq = config->rx_interrupts != 0;
	if (config->rx_queues > 1 && dev.flow_type_rss_offloads != 0) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf =
			(RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP) &
			dev.flow_type_rss_offloads;
	}
	ret = rte_eth_dev_configure(port, config->rx_queues, config->tx_queues, &conf);
	if (ret != 0)
		return ret;
	ret = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx_ring, &tx_ring);
	if (ret != 0)
		return ret;
	ret = rte_eth_dev_info_get(port, &dev);
	if (ret != 0)
		return ret;
	rxconf = dev.default_rxconf;
	rxconf.offloads = conf.rxmode.offloads;
	txconf = dev.default_txconf;
	txconf.offloads = conf.txmode.offloads;
	numa = rte_eth_dev_socket_id(port);
	for (queue = 0; queue < config->rx_queues; queue++) {
		ret = rte_eth_rx_queue_setup(port, queue, rx_ring, numa, &rxconf, pool);
		if (ret != 0)
			return ret;
	}
	for (queue = 0; queue < config->tx_queues; queue++) {
		ret = rte_eth_tx_queue_setup(port, queue, tx_ring, numa, &txconf);
		if (ret != 0)
			return ret;
	}
	return 0;
}

int fv_port_start(uint16_t port)
{
	return rte_eth_dev_start(port);
}

int fv_port_stop(uint16_t port)
{
	return rte_eth_dev_stop(port);
}

/* Closes the port, and detaches its device when that was the last port of it. The port is stopped. */
int fv_port_remove(uint16_t port)
{
	struct rte_eth_dev_info dev;
	struct rte_device *device = NULL;
	uint16_t other;
	int ret;

	if (rte_eth_dev_info_get(port, &dev) == 0)
		device = dev.device;
	ret = rte_eth_dev_close(port);
	if (ret != 0 || device == NULL)
		return ret;
	RTE_ETH_FOREACH_DEV_OF(other, device) {
		(void)other;
		return 0;
	}
	return rte_dev_remove(device);
}

/* Frames for everybody, or for the port's own address and for groups. A device that cannot tell groups
 * apart is none the worse for being asked. */
int fv_port_promiscuous(uint16_t port, int on)
{
	if (on)
		return rte_eth_promiscuous_enable(port);
	(void)rte_eth_allmulticast_enable(port);
	return rte_eth_promiscuous_disable(port);
}

int fv_port_stats(uint16_t port, struct fv_port_stats *stats)
{
	struct rte_eth_stats now;
	int ret = rte_eth_stats_get(port, &now);

	if (ret != 0)
		return ret;
	stats->rx_packets = now.ipackets;
	stats->tx_packets = now.opackets;
	stats->rx_bytes = now.ibytes;
	stats->tx_bytes = now.obytes;
	stats->rx_missed = now.imissed;
	stats->rx_errors = now.ierrors;
	stats->tx_errors = now.oerrors;
	stats->rx_no_buffer = now.rx_nombuf;
	return 0;
}

int fv_port_stats_reset(uint16_t port)
{
	return rte_eth_stats_reset(port);
}

int fv_port_link(uint16_t port, struct fv_port_link *link)
{
	struct rte_eth_link now;
	int ret = rte_eth_link_get_nowait(port, &now);

	if (ret != 0)
		return ret;
	link->mbps = now.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : now.link_speed;
	link->up = now.link_status == RTE_ETH_LINK_UP;
	link->full_duplex = now.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return 0;
}

int fv_port_mac(uint16_t port, uint8_t mac[6])
{
	struct rte_ether_addr now;
	int ret = rte_eth_macaddr_get(port, &now);

	if (ret == 0)
		memcpy(mac, now.addr_bytes, 6);
	return ret;
}

int fv_port_mtu(uint16_t port, uint16_t *mtu)
{
	return rte_eth_dev_get_mtu(port, mtu);
}

/* The eventfd (or socket) of a queue's interrupt, negative when there is none. */
int fv_rx_event_fd(uint16_t port, uint16_t queue)
{
	return rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue);
}

int fv_rx_event_arm(uint16_t port, uint16_t queue, int on)
{
	return on ? rte_eth_dev_rx_intr_enable(port, queue) : rte_eth_dev_rx_intr_disable(port, queue);
}

/* Drivers that chain buffers although nobody asked for scatter (memif, tap, pcap): the packet is
 * copied together where it fits one buffer and dropped where not, and both are counted. */
static uint16_t keep_single(struct rte_mbuf **mbufs, uint16_t first, uint16_t count,
			    uint64_t *linearised, uint64_t *dropped)
{
	uint16_t kept = first, i;

	for (i = first; i < count; i++) {
		struct rte_mbuf *mbuf = mbufs[i];

		if (unlikely(mbuf->nb_segs != 1)) {
			if (rte_pktmbuf_linearize(mbuf) != 0) {
				rte_pktmbuf_free(mbuf);
				(*dropped)++;
				continue;
			}
			(*linearised)++;
		}
		mbufs[kept++] = mbuf;
	}
	return kept;
}

uint16_t fv_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count,
		     uint64_t *linearised, uint64_t *dropped)
{
	uint16_t received = rte_eth_rx_burst(port, queue, mbufs, count);
	uint16_t i;

	for (i = 0; i < received; i++) {
		if (unlikely(mbufs[i]->nb_segs != 1))
			return keep_single(mbufs, i, received, linearised, dropped);
	}
	return received;
}

uint16_t fv_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

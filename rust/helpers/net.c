// SPDX-License-Identifier: GPL-2.0

#include <linux/net.h>
#include <linux/skbuff.h>
#include <linux/uio.h>
#include <net/busy_poll.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <net/tcp.h>

struct net *neonsan_helper_get_net(struct net *net)
{
	return get_net(net);
}

void neonsan_helper_put_net(struct net *net)
{
	put_net(net);
}

void neonsan_helper_lock_sock(struct sock *sk)
{
	lock_sock(sk);
}

/* The socket's lock as a soft interrupt takes it. */
void neonsan_helper_bh_lock_sock(struct sock *sk)
{
	local_bh_disable();
	bh_lock_sock(sk);
}

void neonsan_helper_bh_unlock_sock(struct sock *sk)
{
	bh_unlock_sock(sk);
	local_bh_enable();
}

bool neonsan_helper_sk_receive_queue_empty(const struct sock *sk)
{
	return skb_queue_empty_lockless(&sk->sk_receive_queue);
}

/* Takes what the network device that the socket's packets come through has; does not wait. */
void neonsan_helper_sk_busy_loop_once(struct sock *sk)
{
	sk_busy_loop(sk, true);
}

bool neonsan_helper_sock_owned_by_user_nocheck(const struct sock *sk)
{
	return sock_owned_by_user_nocheck(sk);
}

bool neonsan_helper_sk_stream_is_writeable(const struct sock *sk)
{
	return sk_stream_is_writeable(sk);
}

void neonsan_helper_clear_sock_nospace(struct sock *sk)
{
	if (sk->sk_socket)
		clear_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
}

void neonsan_helper_read_lock_callbacks(struct sock *sk)
{
	read_lock_bh(&sk->sk_callback_lock);
}

void neonsan_helper_read_unlock_callbacks(struct sock *sk)
{
	read_unlock_bh(&sk->sk_callback_lock);
}

void neonsan_helper_write_lock_callbacks(struct sock *sk)
{
	write_lock_bh(&sk->sk_callback_lock);
}

void neonsan_helper_write_unlock_callbacks(struct sock *sk)
{
	write_unlock_bh(&sk->sk_callback_lock);
}

#ifdef CONFIG_DEBUG_LOCK_ALLOC
static struct lock_class_key neonsan_sk_key[2];
static struct lock_class_key neonsan_slock_key[2];

/*
 * A socket that I/O of a disk depends on is locked below file systems, others
 * above them: with the common class lockdep would see a circle in that.
 */
static void neonsan_sock_reclassify(struct sock *sk)
{
	if (WARN_ON_ONCE(!sock_allow_reclassification(sk)))
		return;
	if (sk->sk_family == AF_INET6)
		sock_lock_init_class_and_name(sk, "slock-AF_INET6-NEONSAN", &neonsan_slock_key[1],
					      "sk_lock-AF_INET6-NEONSAN", &neonsan_sk_key[1]);
	else
		sock_lock_init_class_and_name(sk, "slock-AF_INET-NEONSAN", &neonsan_slock_key[0],
					      "sk_lock-AF_INET-NEONSAN", &neonsan_sk_key[0]);
	/*
	 * With lockdep the socket now holds the module, since the keys are in it:
	 * rmmod, which detaches what is attached and so ends every socket, would be
	 * refused as long as there is one. A socket of ours is reset before it is
	 * released; nobody takes its lock after that.
	 */
	sk_owner_put(sk);
	sk_owner_clear(sk);
}
#else
static void neonsan_sock_reclassify(struct sock *sk) { }
#endif

/* A kernel socket that holds its network namespace and may be used for writeback. */
void neonsan_helper_sock_prepare(struct socket *sock)
{
	struct sock *sk = sock->sk;

	neonsan_sock_reclassify(sk);
	sk_net_refcnt_upgrade(sk);
	sk->sk_allocation = GFP_NOIO;
	sk->sk_use_task_frag = false;
	sk_set_memalloc(sk);
}

/*
 * The end of that, for a socket that is disconnected and that nobody uses any
 * more: the kernel counts the sockets that may use the reserves. The flag is set
 * again afterwards: a packet from the reserves that has passed the socket's
 * filter already may still reach its backlog while it is released, where the
 * kernel insists on the flag. Without the socket's lock: the last such socket of
 * the host changes the kernel's text, under locks that must not come after it.
 */
void neonsan_helper_sock_clear_memalloc(struct sock *sk)
{
	sk_clear_memalloc(sk);
	local_bh_disable();
	bh_lock_sock(sk);
	sock_set_flag(sk, SOCK_MEMALLOC);
	bh_unlock_sock(sk);
	local_bh_enable();
}

void neonsan_helper_sock_set_rcvtimeo(struct sock *sk, long jiffies)
{
	WRITE_ONCE(sk->sk_rcvtimeo, jiffies);
}

void neonsan_helper_sock_set_sndtimeo_jiffies(struct sock *sk, long jiffies)
{
	WRITE_ONCE(sk->sk_sndtimeo, jiffies);
}

int neonsan_helper_sk_state(const struct sock *sk)
{
	return READ_ONCE(sk->sk_state);
}

/*
 * What TCP takes for a segment of this connection's data now. sk_rcvlowat is no
 * substitute: it would have TCP wait for a whole payload, and acknowledge each
 * packet until then, where the driver wants all but the last two segments at
 * once (see Attached::is_worth_reading). Without the field there is no way to
 * know how many bytes two segments are.
 */
unsigned int neonsan_helper_tcp_rcv_mss(const struct sock *sk)
{
	return inet_csk(sk)->icsk_ack.rcv_mss;
}

bool neonsan_helper_tcp_epollin_ready(const struct sock *sk, unsigned int target)
{
	return tcp_epollin_ready(sk, min_t(unsigned int, target, INT_MAX));
}

bool neonsan_helper_sendpages_ok(struct page *page, size_t len, size_t offset)
{
	return sendpages_ok(page, len, offset);
}

/* Sends bvecs from offset within the first; returns the bytes taken or -errno. */
int neonsan_helper_sock_send_bvecs(struct socket *sock, const struct bio_vec *bvecs,
				   unsigned long nr, size_t offset, size_t len, int flags)
{
	struct msghdr msg = { .msg_flags = flags };

	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, bvecs, nr, len);
	msg.msg_iter.iov_offset = offset;
	return sock_sendmsg(sock, &msg);
}

int neonsan_helper_sock_send(struct socket *sock, void *data, size_t len, int flags)
{
	struct msghdr msg = { .msg_flags = flags };
	struct kvec vec = { .iov_base = data, .iov_len = len };

	return kernel_sendmsg(sock, &msg, &vec, 1, len);
}

int neonsan_helper_sock_recv(struct socket *sock, void *data, size_t len, int flags)
{
	struct msghdr msg = { .msg_flags = flags };
	struct kvec vec = { .iov_base = data, .iov_len = len };

	return kernel_recvmsg(sock, &msg, &vec, 1, len, flags);
}

/* The tags of a lost connection: what is wanted, and where to put it */
#ifndef NUA_TP_TAG_H
#define NUA_TP_TAG_H

typedef enum {
	STUB_END, STUB_ID, STUB_ERRNO, STUB_CAUSE, STUB_PROTO, STUB_PEER_HOST, STUB_PEER_PORT, STUB_OPENED, STUB_NOTICED, STUB_NOTICED_USEC
} stub_tag_t;

#define TAG_END() STUB_END
#define NUTAG_TP_ID_REF(x) STUB_ID, (size_t *) &(x)
#define NUTAG_TP_ERRNO_REF(x) STUB_ERRNO, (int *) &(x)
#define NUTAG_TP_CAUSE_REF(x) STUB_CAUSE, (const char **) &(x)
#define NUTAG_TP_PROTO_REF(x) STUB_PROTO, (const char **) &(x)
#define NUTAG_TP_PEER_HOST_REF(x) STUB_PEER_HOST, (const char **) &(x)
#define NUTAG_TP_PEER_PORT_REF(x) STUB_PEER_PORT, (const char **) &(x)
#define NUTAG_TP_OPENED_REF(x) STUB_OPENED, (unsigned int *) &(x)
#define NUTAG_TP_NOTICED_REF(x) STUB_NOTICED, (unsigned int *) &(x)
#define NUTAG_TP_NOTICED_USEC_REF(x) STUB_NOTICED_USEC, (unsigned int *) &(x)

int tl_gets(tagi_t const *tags, ...);

#endif

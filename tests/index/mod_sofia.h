/* What sofia_tp_error.c uses of FreeSWITCH and sofia-sip, as far as it uses it */
#ifndef MOD_SOFIA_H
#define MOD_SOFIA_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SWITCH_BEGIN_EXTERN_C
#define SWITCH_END_EXTERN_C
#define SWITCH_THREAD_FUNC
#define SWITCH_THREAD_STACKSIZE 0
#define SWITCH_MUTEX_UNNESTED 0
#define SWITCH_MUTEX_NESTED 1
#define SWITCH_CHANNEL_LOG 0
#define SOFIA_CHAT_PROTO "sip"
#define MY_EVENT_REGISTER "sofia::register"
#define MY_EVENT_UNREGISTER "sofia::unregister"
#define MY_EVENT_EXPIRE "sofia::expire"
#define MY_EVENT_TP_ERROR_REPORT "report"
#define MY_EVENT_TP_ERROR_TRUNK "trunk"

typedef enum { SWITCH_FALSE, SWITCH_TRUE } switch_bool_t;
typedef enum { SWITCH_STATUS_SUCCESS, SWITCH_STATUS_FALSE } switch_status_t;
typedef enum { SWITCH_EVENT_CUSTOM, SWITCH_EVENT_PRESENCE_IN } switch_event_types_t;
typedef enum { SWITCH_STACK_BOTTOM } switch_stack_t;
typedef enum { SWITCH_LOG_CRIT, SWITCH_LOG_ERROR, SWITCH_LOG_WARNING, SWITCH_LOG_DEBUG, SWITCH_LOG_DEBUG1, SWITCH_LOG_DEBUG9 } switch_log_level_t;
typedef enum {
	PFLAG_RUNNING,
	PFLAG_MULTIREG,
	PFLAG_MULTIREG_CONTACT,
	PFLAG_TP_ERROR_REPORT,
	PFLAG_TP_ERROR_UNREGISTER,
	PFLAG_COUNT
} PFLAGS;

typedef int64_t switch_time_t;
typedef struct switch_memory_pool switch_memory_pool_t;
typedef struct switch_mutex switch_mutex_t;
typedef struct switch_thread_cond switch_thread_cond_t;
typedef struct switch_thread switch_thread_t;
typedef struct switch_threadattr switch_threadattr_t;
typedef struct { unsigned char data[16]; } switch_uuid_t;
typedef void *(*switch_thread_start_t) (switch_thread_t *, void *);
typedef int (*switch_core_db_callback_func_t) (void *pArg, int argc, char **argv, char **columnNames);

typedef struct { char *name; char *value; } switch_header_t;
typedef struct switch_event {
	struct switch_event *next;
	const char *subclass;
	uint64_t sequence;
	switch_header_t headers[24];
	int count;
} switch_event_t;

typedef struct nua_s { int number; } nua_t;
typedef struct { const char *url_user; const char *url_host; } url_t;
typedef struct { url_t a_url[1]; } sip_addr_t;
typedef struct { uint32_t cs_seq; } sip_cseq_t;
typedef struct { const char *i_id; } sip_call_id_t;
typedef struct { const char *o_type; } sip_event_t;
typedef struct { sip_addr_t *sip_to; sip_addr_t *sip_from; sip_cseq_t *sip_cseq; sip_call_id_t *sip_call_id; sip_event_t *sip_event; } sip_t;

/* A connection, in place of a list of tags */
typedef struct {
	size_t id;
	int errcode;
	const char *cause;
	const char *proto;
	const char *peer_host;
	const char *peer_port;
	unsigned int opened;
	unsigned int noticed;
	unsigned int noticed_usec;
} tagi_t;

typedef struct sofia_profile {
	const char *name;
	const char *url;
	const char *sub_domain;
	const char *reg_db_domain;
	switch_memory_pool_t *pool;
	const char *dbname;
	const char *odbc_dsn;
	switch_mutex_t *dbh_mutex;
	struct sofia_tp_error *tp_error;
	struct sofia_tp_events *tp_expired;
	uint32_t tp_error_wait;
	unsigned char pflags[PFLAG_COUNT];
} sofia_profile_t;

typedef struct sofia_dispatch_event_s {
	struct sofia_dispatch_event_s *next;
	sofia_profile_t *profile;
	sip_t *sip;
	struct sofia_tp_request *tp_request;
} sofia_dispatch_event_t;

extern struct {
	char hostname[16];
	switch_memory_pool_t *pool;
	switch_mutex_t *mutex;
	struct sofia_tp_db *tp_db;
} mod_sofia_globals;

#define zstr(s) (!(s) || !*(s))
#define switch_str_nil(s) ((s) ? (s) : "")
#define switch_safe_free(p) do { free(p); (p) = NULL; } while (0)
#define switch_zmalloc(p, len) ((p) = stub_zmalloc(len))
#define sofia_test_pflag(profile, flag) ((profile)->pflags[flag])
#define switch_log_printf(channel, level, ...) ((void) (level), stub_format(__VA_ARGS__))

void *stub_zmalloc(size_t len);
void stub_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *switch_core_alloc(switch_memory_pool_t *pool, size_t len);
char *switch_core_strdup(switch_memory_pool_t *pool, const char *text);
char *switch_mprintf(const char *format, ...);
char *switch_copy_string(char *to, const char *from, size_t len);
const char *switch_stristr(const char *part, const char *text);
void switch_uuid_get(switch_uuid_t *uuid);
time_t switch_epoch_time_now(time_t *now);
switch_time_t switch_mono_micro_time_now(void);
void switch_cond_next(void);
void switch_yield(unsigned int us);

switch_status_t switch_mutex_init(switch_mutex_t **mutex, unsigned int flags, switch_memory_pool_t *pool);
switch_status_t switch_mutex_lock(switch_mutex_t *mutex);
switch_status_t switch_mutex_unlock(switch_mutex_t *mutex);
switch_status_t switch_thread_cond_create(switch_thread_cond_t **cond, switch_memory_pool_t *pool);
switch_status_t switch_thread_cond_wait(switch_thread_cond_t *cond, switch_mutex_t *mutex);
switch_status_t switch_thread_cond_timedwait(switch_thread_cond_t *cond, switch_mutex_t *mutex, switch_time_t wait);
switch_status_t switch_thread_cond_signal(switch_thread_cond_t *cond);
switch_status_t switch_threadattr_create(switch_threadattr_t **attr, switch_memory_pool_t *pool);
switch_status_t switch_threadattr_stacksize_set(switch_threadattr_t *attr, size_t size);
switch_status_t switch_thread_create(switch_thread_t **thread, switch_threadattr_t *attr, switch_thread_start_t run, void *obj,
									 switch_memory_pool_t *pool);
switch_status_t switch_thread_join(switch_status_t *status, switch_thread_t *thread);

switch_status_t switch_event_create(switch_event_t **event, switch_event_types_t type);
switch_status_t switch_event_create_subclass(switch_event_t **event, switch_event_types_t type, const char *subclass);
switch_status_t switch_event_add_header(switch_event_t *event, switch_stack_t stack, const char *name, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
switch_status_t switch_event_add_header_string(switch_event_t *event, switch_stack_t stack, const char *name, const char *value);
switch_status_t switch_event_fire(switch_event_t **event);

switch_status_t switch_core_del_registration(const char *user, const char *realm, const char *token);
void sofia_glue_execute_sql_now(sofia_profile_t *profile, char **sql, switch_bool_t sql_already_dynamic);
switch_bool_t sofia_glue_execute_sql_callback(sofia_profile_t *profile, switch_mutex_t *mutex, char *sql,
											  switch_core_db_callback_func_t callback, void *pdata);

#include "sofia_tp_error.h"

#endif

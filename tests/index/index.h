/* What the stubs and the test share */
#ifndef INDEX_H
#define INDEX_H

/* How many seconds of the index pass in one of ours */
extern unsigned int clock_speed;
/* How many mutexes this thread holds */
extern __thread int mutexes_held;

switch_memory_pool_t *pool_new(void);
void pool_free(switch_memory_pool_t *pool);
const char *event_get(const switch_event_t *event, const char *name);
void event_free(switch_event_t *event);
uint64_t event_last(void);

#endif

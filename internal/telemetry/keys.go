package telemetry

// allowed lists every attribute that may stand in a log line, by its full path, with what its values are.
// A key that could hold what a person typed, a token, or a payload does not belong here.
var allowed = map[string]struct{}{
	// The program and its surroundings.
	"component":   {}, // the package or part that logs
	"program":     {}, // app, consumer
	"version":     {}, // of the program, or of what it found
	"pid":         {}, // of a process started or found
	"addr":        {}, // host:port that we listen on or connect to, of ours only
	"url":         {}, // of ours; userinfo and query are scrubbed
	"dir":         {}, // a directory of ours
	"path":        {}, // a file of ours; never the path of a request
	"signal":      {}, // that stops the program
	"setting":     {}, // the name of a setting, never its value
	"database":    {}, // the name of a database
	"schema":      {}, // of a migration set or table
	"table":       {}, // the name of a table
	"migration":   {}, // name of a migration
	"error":       {}, // an error, scrubbed
	"stack":       {}, // a goroutine's stack, condensed to functions and lines
	"reason":      {}, // one of a few constants: why something was done
	"state":       {}, // one of a few constants: where a thing stands
	"outcome":     {}, // one of a few constants: how a thing ended
	"duration":    {}, // how long it took
	"timeout":     {}, // how long it may take
	"count":       {}, // how many
	"limit":       {}, // the named limit that was reached
	"bytes":       {}, // a length
	"attempt":     {}, // first is 1
	"attempts":    {}, // how many there were
	"max":         {}, // how many there may be
	"next":        {}, // when it happens again
	"delay":       {}, // how long until it happens again
	"dropped":     {}, // written by this package: names of attributes that were dropped
	"http.method": {}, // GET, POST
	"http.route":  {}, // the pattern that matched, never the path that was asked for
	"http.status": {}, // the answer's code
	"http.bytes":  {}, // the answer's length

	// Events and what handles them.
	"event_id":     {}, // UUIDv7
	"event_type":   {}, // user.registered
	"event_key":    {}, // the aggregate's id, a UUID
	"topic":        {}, // user
	"consumer":     {}, // welcome-email
	"consumers":    {}, // several of them
	"handler":      {}, // name of an in-process handler
	"job_id":       {}, // UUIDv7
	"job_kind":     {}, // name of a kind of job
	"position":     {}, // of a row in the log
	"cursor":       {}, // how far a consumer is
	"partition":    {}, // number, or a broker's name of it
	"broker":       {}, // nats
	"lane":         {}, // number
	"epoch":        {}, // of a lease
	"lag":          {}, // how far a consumer is behind
	"key":          {}, // ordering key: the aggregate's id
	"user_id":      {}, // UUIDv7
	"message_id":   {}, // Message-ID of a mail: the event's id
	"smtp_code":    {}, // three digits
	"template":     {}, // name of a mail template
	"sqlstate":     {}, // five characters
	"constraint":   {}, // the name of a constraint
	"request_id":   {}, // made by us
	"rate_limit":   {}, // name of the limit that was reached
	"http_version": {}, // HTTP/1.1

	// Watermill's own names, as its router, CQRS component and SQL packages use them.
	"handler_name":             {}, // a consumer's handler
	"subscriber_name":          {}, // the same
	"err":                      {}, // an error, scrubbed
	"query_err":                {}, // the same
	"event_handler_name":       {}, // the same
	"event_handler_group_name": {}, // a consumer
	"command_handler_name":     {}, // a consumer
	"expected_event_type":      {}, // user.registered
	"received_event_type":      {}, // user.registered
	"publish_topic":            {}, // user
	"consumer_group":           {}, // a consumer
	"subscriber_id":            {}, // ULID of a subscriber
	"pubsub_uuid":              {}, // of an in-memory broker
	"message_uuid":             {}, // an event's id
	"msg_uuid":                 {}, // the same
	"uuid":                     {}, // the same
	"produced_messages_count":  {}, // how many
	"rows_affected":            {}, // how many
	"retry_no":                 {}, // first is 1
	"max_retries":              {}, // how many there may be
	"wait_time":                {}, // before a retry
	"no_msg":                   {}, // true when there was nothing to read
	"acked":                    {}, // true or false
}

-- The clock of a test: see doc.go. It stands before pg_catalog in the search_path of this database, so statements that ask
-- for the time ask it.
CREATE SCHEMA bustest;
CREATE TABLE bustest.clock (at timestamptz NOT NULL);
INSERT INTO bustest.clock VALUES (pg_catalog.clock_timestamp());
CREATE FUNCTION bustest.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM bustest.clock';
CREATE FUNCTION bustest.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM bustest.clock';
CREATE FUNCTION bustest.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM bustest.clock';
CREATE FUNCTION bustest.transaction_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM bustest.clock';

-- The migrations have run before, so their defaults are bound to pg_catalog's. Their text is read as it stands, and given again
-- where the names mean the clock.
DO $$
DECLARE
	commands text[];
	command text;
BEGIN
	SELECT array_agg(format('ALTER TABLE %I.%I ALTER COLUMN %I SET DEFAULT %s', n.nspname, c.relname, a.attname,
			regexp_replace(pg_get_expr(d.adbin, d.adrelid), 'CURRENT_TIMESTAMP(\(\d\))?', 'now()', 'g')))
		INTO commands
		FROM pg_attrdef AS d
		JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
		JOIN pg_class AS c ON c.oid = d.adrelid
		JOIN pg_namespace AS n ON n.oid = c.relnamespace
		WHERE a.attgenerated = '' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
			AND pg_get_expr(d.adbin, d.adrelid) ~ '\m(now|clock_timestamp|statement_timestamp|transaction_timestamp)\(\)|CURRENT_TIMESTAMP';
	PERFORM set_config('search_path', 'public, bustest, pg_catalog', true);
	FOREACH command IN ARRAY coalesce(commands, '{}') LOOP
		EXECUTE command;
	END LOOP;
	EXECUTE format('ALTER DATABASE %I SET search_path = public, bustest, pg_catalog', current_database());
END
$$;

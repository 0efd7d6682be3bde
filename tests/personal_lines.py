"""Lines with personal data, marked as [[kind:value]], and lines that only look as if they had some.

All of it is invented or reserved; keys are put together from pieces.
"""

FOUND = r'''
Schreiben Sie an [[email:anna.lenz@gartenbau-lenz.de]], wenn etwas fehlt.
请发邮件至[[email:wang.fang@beixing-keji.cn]]联系我们
联系邮箱：[[email:kefu2020@lvye.com.cn]]。
ご質問は[[email:sato_k@minato-shoten.co.jp]]までお送りください。
お問い合わせ先（[[email:info@yamakawa.jp]]）
이메일은 [[email:kim.minsu@hanul.co.kr]]로 보내 주세요
문의:[[email:help@badatour.kr]]까지
Пишите на почту [[email:olga.petrova@zavod-sever.ru]], ответим быстро.
Наш адрес:[[email:sklad@mebel-dom.com.ua]]; звоните
Контакт: [[email:иванов@почта.рф]]
راسلنا على [[email:sales@noor-books.ae]] في أي وقت
ایمیل:[[email:reza@ketabkhane.ir]]
כתבו אל [[email:dana@sfarim.co.il]] ונחזור אליכם
อีเมล[[email:somchai@baansuan.co.th]]ได้ทุกวัน
हमें [[email:seva@pustak.in]] पर लिखें
Γράψτε στο [[email:nikos@ergastiri.gr]] για πληροφορίες
Kontakt: [[email:björn@åkeri.se]]
Mail an [[email:post@käse-müller.de]] genügt.
Escríbenos a [[email:josé.núñez@peñalara.es]].
<a href="mailto:[[email:jobs@tischlerei-brandt.at]]">
From: Marta Kowalska <[[email:m.kowalska@drukarnia.pl]]>
author_email='[[email:lee@quietcode.dev]]',
maintainer: [[email:o'brien@harbour.ie]]
send it to [[email:first.last+lists@mail.uni-ulm.de]]!
Reach me at [[email:t_w@cs.otago.ac.nz]] or come by
名前＠会社ではなく、[[email:ｔａｎａｋａ＠kaisha.co.jp]] です
Co-authored-by: Ana Lima <[[email:ana@lima.arq.br]]>
See you, [[email:pete@old-mill.co.uk]].Thanks
support([[email:help@riverlabs.io]])
用户邮箱为[[email:lin123456@post-cn.com]]，请核对
Telefon: [[phone:030 901820]]
Tel.: [[phone:089/32 16 54 98]]
Tel.-Nr. [[phone:0711 2345678]]
Handy: [[phone:0171 5550234]] (abends)
Ruf an: [[phone:0049 30 901820]]
Fax [[phone:0043 1 5336710]] oder per Post
Durchwahl und Fax: [[phone:+49 (0)40 42838-0]]
Tél. : [[phone:01 42 68 53 00]]
Téléphone : [[phone:04.91.13.89.00]]
Portable: [[phone:06 12 34 56 78]]
Teléfono: [[phone:91 542 88 00]]
Móvil [[phone:612 345 678]]
Telefone: [[phone:(11) 3257-6600]]
Celular: [[phone:11 98765-4321]]
Telefono: [[phone:06 6982 3456]]
Cellulare [[phone:347 1234567]]
Telefoon: [[phone:020-6203911]]
Puh. [[phone:09 3101 1111]]
тел. [[phone:8 (495) 123-45-67]]
Телефон: [[phone:495 223-32-23]]
Звоните [[phone:8-800-555-35-35]] бесплатно
моб.: [[phone:+7 916 123 45 67]]
هاتف: [[phone:02 2735 1111]]
هاتف: [[phone:٠٢ ٢٧٣٥ ١١١١]]
تلفن: [[phone:۰۲۱ ۸۸۷۷ ۶۶۵۵]]
טלפון: [[phone:03-5123456]]
拨打[[phone:+86 138 0013 8000]]咨询
电话：[[phone:010-62751234]]
请打手机[[phone:13800138000]]找张先生
手机：[[phone:139 1234 5678]]
传真:[[phone:021-5888 7766]]
電話は[[phone:03-5321-1111]]までどうぞ
携帯[[phone:090-1234-5678]]に連絡
TEL：[[phone:０３-５３２１-１１１１]]
전화 [[phone:02-735-8688]]
휴대폰: [[phone:010-9876-5432]]
โทร [[phone:02 218 2000]]
Điện thoại: [[phone:024 3825 4223]]
Call [[phone:212-736-5000x123]] and ask for Ed
Phone: [[phone:(718) 575-1816 ext. 42]]
call us at [[phone:0800 028 0800]] today
Phone number is [[phone:415-362-2900]]
Registrant Phone: [[phone:+1.4153622900]]
WhatsApp [[phone:+55 11 99888-7766]]
You can dial [[phone:001 212 736 5000]] from Europe
(Tel [[phone:020 7946 0812]])
office [[phone:+44 (0)20 7946 0018]], home unlisted
Fon [[phone:0221–22122345]]
服务器[[ip:93.184.216.34]]的日志
サーバ[[ip:203.104.209.71]]に接続
[[ip:91.198.174.192]] - - [10/Oct/2023:13:55:36 +0000] "GET / HTTP/1.1" 200
Failed password for root from [[ip:218.92.0.190]] port 4242 ssh2
ping [[ip:8.8.4.4]] answers
nameserver [[ip:9.9.9.9]]
the server at [[ip:12.34.5.6]] is down
http://[[ip:64.233.160.5]]:8080/admin
inet6 [[ip:2a02:8108:8ac0:2f70:1c2b:9dff:fe3a:1]] scope global
Адрес сервера:[[ip:95.163.61.12]]
Blocked [[ip:185.220.101.46]]; [[ip:45.155.205.233]]
remote addr=[[ip:151.101.1.69]]
卡号[[card:4556 7375 8689 9855]]，有效期
card [[card:5425233430109903]] exp 04/26
付款卡：[[card:6222 0212 3456 7890 128]]
カード番号は[[card:3566-0020-2036-0505]]です
Visa [[card:4024-0071-0902-2144]] on file
IBAN: [[iban:DE75512108001245126199]]
收款账户[[iban:GB33BUKB20201555555555]]，谢谢
Überweisung an [[iban:AT61 1904 3002 3457 3201]] bitte
счёт [[iban:CH93 0076 2011 6238 5295 7]]
export DB_PASSWORD=[[secret:Zt3LmX0vR7+kP2wYb5Nq8]]
DB_PASS=abc DB_PWD=[[secret:hT9w2LqZx7Vr4]]
aws_secret_access_key = [[secret:k7Zt3LmX0vR7kP2wYb5Nq8Zt3LmX0vR7kP2wYb5N]]
SECRET_KEY=[[secret:p0q9w8e7r6t5y4u3i2o1A]]
  api_key: [[secret:9f8e7d6c5b4a39281706f5e4d3c2b1a0]]
auth_token: '[[secret:Qw7Er9Ty2Ui4Op6As8Df]]'
client-secret = [[secret:mB3~xT8.qLw5Zr1Kv7Jn]]
curl -H "Authorization: Bearer [[secret:a8F3kLz9Qw2Xv7Bn4Mt6]]" https://x.org
mysqldump --password=[[secret:nT5vKq8Zr2Wx]] shop
tool --token [[secret:u7Yt6Re5Wq4Az3Sx2Dc1]] list
url = postgres://app:[[secret:V9kq27xLmZ]]@db.farm.net/main
git clone https://ci:[[secret:b7Q2xKp9]]@git.farm.net/x.git
{"private_key_id": "[[secret:3f9a1c7e5b2d8046af13c97e]]"}
set ACCESS_KEY=[[secret:J8w3ZqN5tXb7VcL2]]
AccountKey=[[secret:pX7vQ2mZ9tL4wR8kY3nB6cJ1hF5dS0gA]];
Звоните: [[phone:8(916)123-45-67]]
[[phone:01012345678]]로 전화 주세요
الهاتف: [[phone:0501234567]]
Phone 1: [[phone:212 736 5000]]
DB_PASSWORD=[[secret:s3cr3tP4ssw0rdX9]]
POSTGRES_PASSWORD: [[secret:kJ8#mQ2$vL9p]]
客服热线[[phone:400-820-8820]]
連絡先は[[email:yamada.taro＠firma-abc.co.jp]]へ
DB_PASS=[[secret:q8Zt3LmX0vR7kP2w]]
db_pass: [[secret:q8Zt3LmX0vR7kP2w]]
export smtpPass=[[secret:q8Zt3LmX0vR7kP2w]]
'password' => '[[secret:q8Zt3LmX0vR7kP2w]]',
:password => "[[secret:q8Zt3LmX0vR7kP2w]]"
'db_pass'    => '[[secret:Zt3LmX0vQ9]]',
password := "[[secret:q8Zt3LmX0vR7kP2w]]"
ENV DB_PASS [[secret:q8Zt3LmX0vR7kP2w]]
ARG API_TOKEN [[secret:q8Zt3LmX0vR7kP2w]]
<password>[[secret:q8Zt3LmX0vR7kP2w]]</password>
<db.password> [[secret:q8Zt3LmX0vR7kP2w]] </db.password>
<add key="DbPassword" value="[[secret:q8Zt3LmX0vR7kP2w]]" />
<property name="hibernate.connection.password">[[secret:q8Zt3LmX0vR7kP2w]]</property>
<entry key='smtp.pass'>[[secret:q8Zt3LmX0vR7kP2w]]</entry>
machine api.host login ada password [[secret:q8Zt3LmX0vR7kP2w]]
  password [[secret:q8Zt3LmX0vR7kP2w]]
pass: [[secret:q8Zt3LmX0vR7kP2w]]
passphrase: [[secret:q8Zt3LmX0vR7kP2w]]
wpa_passphrase=[[secret:q8Zt3LmX0vR7kP2w]]
Passwort: [[secret:q8Zt3LmX0vR7kP2w]]
Kennwort ist: [[secret:q8Zt3LmX0vR7kP2w]]
contraseña: [[secret:q8Zt3LmX0vR7kP2w]]
пароль: [[secret:q8Zt3LmX0vR7kP2w]]
密码：[[secret:q8Zt3LmX0vR7kP2w]]
setx DB_PASS [[secret:q8Zt3LmX0vR7kP2w]]
setx /M DB_PASSWORD "[[secret:q8Zt3LmX0vR7kP2w]]"
$env:DB_PASS = "[[secret:q8Zt3LmX0vR7kP2w]]"
define('DB_PASSWORD', '[[secret:q8Zt3LmX0vR7kP2w]]');
sshpass -p [[secret:q8Zt3LmX0vR7kP2w]] ssh ada@host
curl -u ada:[[secret:q8Zt3LmX0vR7kP2w]] https://x.org/
PGPASSWORD=[[secret:q8Zt3LmX0vR7kP2w]] psql
dbPass: "[[secret:Zt3LmX0vQ9]]",
<password value="[[secret:q8Zt3LmX0vR7kP2w]]"/>
The password is [[secret:q8Zt3LmX0vR7kP2w]]
Mein Passwort lautet [[secret:q8Zt3LmX0vR7kP2w]]
set -x DB_PASS [[secret:q8Zt3LmX0vR7kP2w]]
<Password>[[secret:q8Zt3LmX0vR7kP2w]]</Password>
default login ada password [[secret:q8Zt3LmX0vR7kP2w]]
redis_pass: "[[secret:q8Zt3LmX0vR7kP2w]]"
Mobil erreichbar unter [[phone:0151 23456789]]
Rückfragen an [[phone:0160 1234567]] oder per Post
[[phone:0170/1234567]] (Fr. Lenz)
Nummer [[phone:0176 12 34 56 78]], abends
+ [[phone:01512 3456789]]
[[phone:+49 151 23456789]]
[[phone:+49 1577 3456789]]
DB_PASS=[[secret:Sommer2024!xK]]
password: [[secret:Winter2023#ab]]
DB_PASSWORD="[[secret:Sommer2024!xK]]"
'''.strip('\n').split('\n')

LEFT = r'''
background: url("img/logo@2x.png") no-repeat;
AppIcon-83.5x83.5@2x~ipad.png and icon@3x.webp
<img srcset="photo.jpg 1x, photo@1.5x.jpg 1.5x">
systemctl restart getty@tty1.service
systemctl enable --now wg-quick@wg0.service backup@daily.timer
Toast.makeText(this@MainActivity.applicationContext, "hi", 0)
this@LoginFragment.viewLifecycleOwner
return@forEach.also { super@Base.toString() }
y = x@self.weight + self.bias
loss = (q@k.transpose(0, 1)) @ v
h = x@W.T
@app.route("/users") and @pytest.mark.slow
npm install lodash@4.17.21 @types/node@18.11.9
yarn add vue@next react@18.2.0-beta.1
pip install requests@2.31.0
uses: actions/checkout@v4.1.7
docker pull alpine@sha256:21a3deaa0d32a805791d
go get golang.org/x/tools@v0.1.12
git clone git@github.com:torvalds/linux.git
git@gitlab.inria.fr:ada/mill.git
scp build.tgz deploy@build.farm.net:/srv/www/
rsync -a ./ web@host7.farm.net:~/site
ssh admin@localhost and root@router.lan
postfix sends it as root@mail.local
sqlplus scott@orcl.world
user@example.com, you@example.org, name@sub.example.net
Follow @ada.lovelace and @grace on the site
转发@李雷：今天天气很好
\newcommand{\c@section.one}{x}
$user@$host.name and ${user}@${domain}
a @ b.c is the product of two matrices
SELECT @total.sum, @@version.x
if x@y.shape[0]: pass
M = A@B.inverse
foo@bar.baz
erlang node app@host.cluster
4.12.3.1 Memory model
11.2.3.4 Packet format
  2.10.4.1 Rules for names
## [1.128.1.0] - 2026-09-02
## [2.90.11.7] - 2024-11-30
### 3.141.59.26 (2021-03-14)
numpy-1.13.3.1.tar.gz
libfoo_4.77.120.9-1ubuntu2_amd64.deb
app-92.10.3.1.dmg
Mozilla/5.0 Chrome/91.10.44.124 Safari/53.77.36.1
version 91.10.77.3 is required
Version: 64.120.33.2
バージョン91.10.77.3 以降
版本 88.77.66.55 已发布
версия 91.10.77.3 вышла вчера
driver 27.120.100.86 from the maker
firmware 65.66.77.88
requires foo>=91.10.77.3,<92
pkg@91.10.77.3
see § 72.81.91.5 of the code
OID 1.3.6.1.4.1.311.21.20
from 3.2.1.4 to 3.2.1.5
127.0.0.1 localhost 192.168.178.1 10.20.30.40
255.255.255.0 and 224.0.0.251
network 91.198.174.0/24
172.16.254.3 is the printer
2001:db8:85a3::8a2e:370:7334
12:30:45:10 and 00:1A:2B:3C:4D:5E
Declination +41.269065 degrees
+40.689247, -74.044502
lat=+48.858370 lon=+2.294481
I bought the phone 2019-05-01 in Rome
my phone 15.03.2021 broke
Mobile 2019-2020 report
Fax 1998-12-31 archive
the phone 1234567 times
telephone 20180317
from 2019-01-05 to 2020-02-06
ISBN 978-0-306-40615-7
ISBN 0-19-852663-6, ISSN 0317-8471
EAN 4006381333931
ports 8000-8100 and 49152-65535
pages 212-218, 736-750
$1,234,567.89 and 12 345 678 EUR
price: 1.299.000,00
+1 to that, +100 points
1e+100000000
0000 0049 3090 1820 7f45 4c46
00000040: 0049 3000 9018 2000
550e8400-e29b-41d4-a716-446655440000
d41d8cd98f00b204e9800998ecf8427e
commit 9fceb02d0ae598e95dc970b74767f19372d61af8
2024-05-17T08:15:30+02:00
@@ -12,7 +12,7 @@ def f(x):
(212) 555-0142 in the novel
3.14159265358979 and 1618033988749895
01-02-2020 and 2020-01-02
0123-45-678
order 10006213400981
4111 1111 1111 1112
1234 5678 9012 3456
DE88 3704 0044 0532 0130 00
x = random.Random(348932549825235)
password = get_password(user)
password: correct horse battery staple
PASSWORD=changeme
DB_PASSWORD=${DB_PASSWORD}
api_key = os.environ["API_KEY"]
token = tokenizer.convert_tokens_to_ids(word)
secret = settings.SECRET_KEY_FILE
access_token=request.session.access_token
token: Optional[str] = None
secretName: web-tls-2024
auth = ("user", "password")
max_tokens: 4096
api_key: your-api-key-goes-here-1
key = "value" and keys = values
SECRET_KEY_PATH=/etc/ssl/private/server1.key
postgres://user:password@db:5432/shop
redis://:secret@cache
https://user:pass@example.com/
--token <your token here>
Authorization: Bearer <token>
author = "Ada" and authority: national2020
The token bucket holds 1500000 bytes
password_hash_algorithm = pbkdf2-sha256
engine = create_engine("mysql+mysqldb://scott:tiger@192.168.0.134/test")
s3://access_key_id:secret_access_key@bucket/key and https://foo.com:123,foo:bar@x/
https://jo%40farm.net:a%20secret@müller.example:1234/
Mastodon: https://mastodon.social/@mill@fosstodon.org
ISSN 0020-0190, Information Processing Letters
32-bit PCM     -2147483648  +2147483647  int32
openid-connect-core-1_0.html (sections `3.1.3.6`_, `3.2.2.10`_)
IPv4 addresses are formatted as ``1.2.3.4:443``
A@B.T@C.mT
torch.einsum("ij,jk", A, B)@node.name
(see 5.12.101.4)
score +12345678
cell (1234567, 7654321)
https://unpkg.com/vue@3.2.1/dist/vue.global.js
https://www.google.com/maps/@48.8588443,2.2943506,15z
PostgreSQL 14.5.2.1 and Linux 4.19.0.21
doi:10.1145/3292500.3330701 and arXiv:1706.03762
root@ubuntu:/srv/data# apt update
PASSWORD=$(cat /run/secrets/db)
apiKey: process.env.API_KEY_V2
the pass: a route over the mountains
The pass: 2,300 metres above the sea
PASS: g++.dg/cpp0x/auto7.C -std=c++11
PASS: tests/gpu/test_x86_64.py::test_fp16x2
password: 8-20chars
pass: R2D2-C3PO
bypass: A1b2C3d4E5f6G7
compass: N45W120x7q
passage: Gen1v2Lk3John
The boarding pass: seat 14C gate B22
ENV PATH /usr/local/bin
ENV TOKENIZERS_PARALLELISM false
  password required pam_unix.so
password    sufficient    pam_unix.so sha512 shadow nullok try_first_pass use_authtok
<password>changeme</password>
<password>${db.password}</password>
<add key="PasswordFormat" value="Hashed" />
'password' => 'required|string|min:8',
'password' => env('DB_PASSWORD'),
define('DB_PASSWORD', 'your_password_here');
pass: function(a) { return b2; }
the 5.15.0.91 kernel
5.15.0.91 kernel
Postgres 9.6.24.100
Ubuntu 22.84.120.91 is out
with the 77.45.12.101 driver
Chrome 91.64.72.114
the 5.15.0.91-generic kernel
Mountain pass: Col d'Aubisque 1709m
ENV NODE_VERSION 18.17.0
Pass: A1 and B2 are required
The password is required for page2 and page3
Az. 0170/1234
Drucksache 16/0170 1234567
00000170 2061 7369 6d70 6c65
0000160 001234 005678 012345 000000
0170 2061 7369 2061 2074 6573
Artikel-Nr. 015112345678
Bestellung 0160-1234
0151 ist die Vorwahl von D1
0152-2019 and 0163-2020
on 0170 12 days later
15.01.2024 0160 pages 12
version 0.151 23456789
x = 0o170 1234567
bytes 0151 0152 0153 0154 0155
the years 0150 1600 1750 1800
table 0171 555
Your password: see page 2024!
password: required! at least 8
PASSWORD=$PASSWORD_2024
DB_PASS=${DB_PASS!}
pass = True; n = 0!=1
assert token == 2024!
auth: none, since 2019!
'''.strip('\n').split('\n')
